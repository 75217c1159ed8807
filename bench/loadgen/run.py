"""Run `vllm bench serve` or guidellm against a gateway, streaming, and fail on the first request that fails.

    python -m bench.loadgen.run vllm --program V/bin/vllm --url http://127.0.0.1:8080 --model M --tokenizer FOLDER
    python -m bench.loadgen.run guidellm --program G/bin/guidellm ...

Each tool needs an environment of its own (`tests/vllm/install.py` makes one that has vLLM; `pip install guidellm` in
another). The tokenizer is a folder, so that nothing is fetched. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
TIMEOUT_S = 1800
LOG_TAIL_CHARS = 2000


class LoadError(Exception):
    """The tool ended in an error; the message has the end of what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the gateway: prompts and answers of random words, arriving at random."""

    url: str
    model: str
    tokenizer: Path
    requests: int = 200
    per_second: float = 20.0
    prompt_tokens: int = 64
    answer_tokens: int = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it, in the tool's own count."""

    completed: int
    failed: int
    requests_per_s: float
    ttft_mean_ms: float


def run_vllm(program: str, load: Load, folder: Path) -> Outcome:
    """Run `vllm bench serve` on the chat route."""
    _run(
        *(program, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", load.tokenizer),
        *("--dataset-name", "random", "--random-input-len", load.prompt_tokens),
        *("--random-output-len", load.answer_tokens, "--num-prompts", load.requests),
        *("--request-rate", load.per_second, "--ignore-eos", "--disable-tqdm"),
        *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
    )
    told = json.loads((folder / "result.json").read_text())
    return Outcome(told["completed"], told["failed"], told["request_throughput"], told["mean_ttft_ms"])


def run_guidellm(program: str, load: Load, folder: Path) -> Outcome:
    """Run guidellm on the chat route; it streams by itself."""
    result = folder / "result.json"
    _run(
        *(program, "run", "--backend"),
        f"kind=openai_http,target={load.url},model={load.model}",
        *("--profile", f"kind=poisson,rate={load.per_second}"),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.answer_tokens}"),
        *("--tokenizer", f"kind=hf_auto,model={load.tokenizer}"),
        *("--output", f"kind=json,path={result}", "--disable-console-interactive"),
    )
    metrics: dict[str, Any] = json.loads(result.read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    return Outcome(
        totals["successful"],
        totals["errored"] + totals["incomplete"],
        metrics["requests_per_second"]["successful"]["mean"],
        metrics["time_to_first_token_ms"]["successful"]["mean"],
    )


TOOLS: dict[str, Callable[[str, Load, Path], Outcome]] = {"vllm": run_vllm, "guidellm": run_guidellm}


def _run(*command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise LoadError(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-LOG_TAIL_CHARS:]}")


def main() -> int:
    """Run the tool, print what came of it, and return 1 where a request failed or is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--program", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokenizer", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--per-second", type=float, default=20.0)
    given = parser.parse_args()
    load = Load(given.url, given.model, given.tokenizer, given.requests, given.per_second)
    with tempfile.TemporaryDirectory() as folder:
        outcome = TOOLS[given.tool](given.program, load, Path(folder))
    sys.stdout.write(json.dumps({"tool": given.tool, **asdict(outcome)}) + "\n")
    return 0 if outcome.failed == 0 and outcome.completed >= load.requests else 1


if __name__ == "__main__":
    sys.exit(main())
