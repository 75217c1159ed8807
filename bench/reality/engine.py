"""The real engine of the benchmark: vLLM on the CPU with little KV memory, which knows the lengths of its answers."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from backends.metrics_text import read_samples
from backends.simulator.engine.kv_cache import WATERMARK
from backends.vllm import PREEMPTIONS
from bench.load_client import LoadClient
from bench.reality.rows import Row
from bench.vllm_environment.engine import BLOCK_TOKENS, MAX_MODEL_TOKENS, OFFLINE, Engine, EngineError, running_engine
from bench.vllm_environment.install import environment, is_complete

STEPS, COMPUTED = "vllm:iteration_tokens_total_count", "vllm:iteration_tokens_total_sum"
GENERATED = "vllm:generation_tokens_total"

BLOCKS = 160
MAX_SEQUENCES = 64
MAX_BATCHED_TOKENS = 2048
KV_TOKENS = (BLOCKS - 1) * BLOCK_TOKENS
"""Tokens that fit into the blocks; vLLM reserves one block."""

CONTEXT_TOKENS = MAX_MODEL_TOKENS
DEEP_MODEL = Path(__file__).parents[1] / "vllm_environment" / "deep_model.py"


@contextmanager
def vllm(folder: Path, rows: Iterable[Row]) -> Iterator[Engine]:
    """Run the engine until the block ends. It ends each answer at its row's length, which no client can see.

    Prefix caching is off: the simulator has none, and repeated runs would find different caches.

    Raises:
        EngineError: it is not installed, or does not start.
    """
    lengths = folder / "true_lengths.jsonl"
    with lengths.open("w") as file:
        for row in rows:
            file.write(json.dumps({"messages": row.messages, "output_tokens": row.output_tokens}) + "\n")
    arguments = (
        *("--model", str(_deep_model(folder)), "--kv-cache-memory-bytes", "256M"),
        *("--num-gpu-blocks-override", str(BLOCKS), "--max-num-seqs", str(MAX_SEQUENCES)),
        *("--max-num-batched-tokens", str(MAX_BATCHED_TOKENS), "--scheduling-policy", "fcfs"),
        *("--watermark", str(WATERMARK)),
        *("--no-enable-prefix-caching", "--logits-processors", "true_length:TrueLength"),
        *("--additional-config", json.dumps({"true_lengths": str(lengths)})),
    )
    with running_engine(folder, *arguments) as engine:
        yield engine


def _deep_model(folder: Path) -> Path:
    home, model = environment(), folder / "deep"
    if not is_complete(home):
        raise EngineError("vLLM is not installed: run make test-vllm")
    command = [str(home / "bin" / "python"), str(DEEP_MODEL), str(home / "tiny"), str(model)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    made = subprocess.run(command, env=inherited | OFFLINE, capture_output=True, text=True, check=False)
    if made.returncode:
        raise EngineError(f"the model could not be created:\n{made.stderr}")
    return model


@dataclass(frozen=True, slots=True)
class Counters:
    """vLLM's counters since its start: steps, tokens computed, tokens generated, and preemptions."""

    steps: int
    computed_tokens: int
    generated_tokens: int
    preemptions: int

    def since(self, before: "Counters") -> "Counters":
        """Return the difference to earlier counters."""
        return Counters(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


async def read_counters(client: LoadClient, url: str) -> Counters:
    """Read the counters from the metrics page."""
    async with client.get(f"{url}/metrics") as response:
        page = await response.successful()
    families = read_samples(page, (STEPS, COMPUTED, GENERATED, PREEMPTIONS)).values()
    return Counters(*(round(sum(sample.value for sample in samples)) for samples in families))
