"""`magnus engine`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from backends.simulator.config import EngineConfig
from backends.simulator.server import serve
from backends.simulator.workload import WorkloadError
from gateway.cli.options import bad_input, failed

DEFAULT = EngineConfig()
_PARENT = "Stop when stdin ends: no engine outlives the one who started it."


def engine(  # noqa: PLR0913 - one parameter an option
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    kind: Annotated[str, typer.Option(help="vllm, tgi or static.")] = "vllm",
    model: Annotated[str, typer.Option(help="The model's name.")] = DEFAULT.model,
    preset: Annotated[str, typer.Option(help="Model and GPU whose step times are simulated.")] = DEFAULT.preset,
    kv_tokens: Annotated[int | None, typer.Option(help="KV memory in tokens; the preset's if not given.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens in a KV block.")] = DEFAULT.block_size,
    max_num_seqs: Annotated[int, typer.Option(help="Most sequences at once.")] = DEFAULT.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Most tokens in a step.")
    ] = DEFAULT.max_num_batched_tokens,
    max_model_len: Annotated[int | None, typer.Option(help="Longest prompt and answer together.")] = None,
    max_queued: Annotated[int | None, typer.Option(help="Requests beyond which it answers 503.")] = None,
    max_batch_size: Annotated[int, typer.Option(help="Batch of a static engine.")] = DEFAULT.max_batch_size,
    max_concurrent: Annotated[
        int, typer.Option(help="Requests beyond which a TGI answers 429.")
    ] = DEFAULT.max_concurrent_requests,
    scheduling_policy: Annotated[str, typer.Option(help="fcfs or priority.")] = DEFAULT.scheduling_policy,
    speed: Annotated[float, typer.Option(help="Virtual seconds a second.")] = DEFAULT.speed,
    seed: Annotated[int, typer.Option(help="Of lengths that no file tells.")] = DEFAULT.seed,
    truth: Annotated[Path | None, typer.Option(help="Lengths by SHA-1 of the prompt, JSON lines.")] = None,
    workload: Annotated[Path | None, typer.Option(help="Lengths by prompt: a workload's rows.")] = None,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help=_PARENT)] = False,
) -> None:
    """Run one simulated engine, with vLLM's or TGI's face; prints its URL when it listens."""
    options = {
        "kind": kind,
        "model": model,
        "preset": preset,
        "kv_tokens": kv_tokens,
        "block_size": block_size,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": max_model_len,
        "max_num_queued_reqs": max_queued,
        "max_batch_size": max_batch_size,
        "max_concurrent_requests": max_concurrent,
        "scheduling_policy": scheduling_policy,
        "speed": speed,
        "seed": seed,
        "truth": truth,
        "workload": workload,
    }
    try:
        config = EngineConfig(**options)  # type: ignore[arg-type]  # checked there, by value
        serve(config, host, port, ready=_announce, exit_with_parent=exit_with_parent)
    except (WorkloadError, ValueError) as error:
        bad_input(error)
    except OSError as error:
        where = error.filename or f"cannot listen on {host}:{port}"
        failed(f"{where}: {error.strerror}")


def _announce(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()
