"""`python -m bench loadgen`: runs `vllm bench serve` or guidellm against a gateway, with streams.

Each tool needs an environment of its own: `bench/vllm_environment/install.py` makes one that has vLLM;
`pip install guidellm` makes another. The tokenizer is a folder, so that the tools download nothing.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gateway.cli.options import failed, print_json

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
TIMEOUT_S = 1800
LOG_TAIL_CHARS = 2000


class ToolError(Exception):
    """The tool failed. The message contains the end of its output."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load on the gateway: prompts and answers of random words at random times."""

    url: str
    model: str
    tokenizer: Path
    requests: int = 200
    per_second: float = 20.0
    prompt_tokens: int = 64
    answer_tokens: int = 32


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Result of a run, as the tool reports it."""

    completed: int
    failed: int
    requests_per_s: float
    ttft_mean_ms: float


def run_vllm(program: str, load: Load, folder: Path) -> LoadResult:
    """Run `vllm bench serve` on the chat route."""
    _run(
        *(program, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", load.tokenizer),
        *("--dataset-name", "random", "--random-input-len", load.prompt_tokens),
        *("--random-output-len", load.answer_tokens, "--num-prompts", load.requests),
        *("--request-rate", load.per_second, "--ignore-eos", "--disable-tqdm"),
        *("--save-result", "--result-dir", folder, "--result-filename", "result.json"),
    )
    result = json.loads((folder / "result.json").read_text())
    return LoadResult(result["completed"], result["failed"], result["request_throughput"], result["mean_ttft_ms"])


def run_guidellm(program: str, load: Load, folder: Path) -> LoadResult:
    """Run guidellm on the chat route; it streams by default."""
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
    return LoadResult(
        totals["successful"],
        totals["errored"] + totals["incomplete"],
        metrics["requests_per_second"]["successful"]["mean"],
        metrics["time_to_first_token_ms"]["successful"]["mean"],
    )


Tool = Literal["vllm", "guidellm"]

TOOLS: dict[Tool, Callable[[str, Load, Path], LoadResult]] = {"vllm": run_vllm, "guidellm": run_guidellm}


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
        raise ToolError(f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-LOG_TAIL_CHARS:]}")


def command(
    tool: Annotated[Tool, typer.Argument(help="The load generator.")],
    program: Annotated[str, typer.Option(help="Path of its program.")],
    url: Annotated[str, typer.Option(help="URL of the gateway, without /v1.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.", exists=True, file_okay=False)],
    requests: Annotated[int, typer.Option(help="Number of requests.")] = 200,
    per_second: Annotated[float, typer.Option(help="Mean requests per second.")] = 20.0,
) -> None:
    """Run a load generator against a gateway; exit with 1 if a request fails or is missing. Prints one JSON object."""
    load = Load(url, model, tokenizer, requests, per_second)
    try:
        with tempfile.TemporaryDirectory() as folder:
            outcome = TOOLS[tool](program, load, Path(folder))
    except ToolError as error:
        failed(error)
    print_json({"tool": tool, **asdict(outcome)})
    if outcome.failed or outcome.completed < load.requests:
        raise typer.Exit(1)
