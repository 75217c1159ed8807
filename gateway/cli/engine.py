"""`magnus engine`: one simulated engine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from backends.simulator.config import EngineConfig
from backends.simulator.server import serve
from backends.simulator.workload import WorkloadError
from gateway.cli.options import bad_input, failed

DEFAULT = EngineConfig()
_PARENT = "Stop when stdin is closed, so that the engine ends with its parent process."


def engine(  # noqa: PLR0913 - one parameter per option
    host: Annotated[str, typer.Option(help="Address on which the engine listens.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on which the engine listens; 0 takes a free port.")
    ] = 8000,
    kind: Annotated[str, typer.Option(help="API and batching: vllm, tgi or static.")] = "vllm",
    model: Annotated[str, typer.Option(help="Name of the served model.")] = DEFAULT.model,
    preset: Annotated[str, typer.Option(help="Model and GPU whose step times are simulated.")] = DEFAULT.preset,
    kv_tokens: Annotated[int | None, typer.Option(help="KV memory in tokens. [from the preset]")] = None,
    block_size: Annotated[int, typer.Option(help="Size of a KV block in tokens.")] = DEFAULT.block_size,
    max_num_seqs: Annotated[int, typer.Option(help="Largest number of running sequences.")] = DEFAULT.max_num_seqs,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Largest number of tokens computed in a step.")
    ] = DEFAULT.max_num_batched_tokens,
    max_model_len: Annotated[
        int | None, typer.Option(help="Context length (prompt and answer) in tokens. [from the preset]")
    ] = None,
    max_queued: Annotated[int | None, typer.Option(help="Sequences above which vLLM answers 503. [no limit]")] = None,
    max_batch_size: Annotated[
        int, typer.Option(help="Largest batch of a static engine, in sequences.")
    ] = DEFAULT.max_batch_size,
    max_concurrent: Annotated[
        int, typer.Option(help="Requests above which TGI answers 429.")
    ] = DEFAULT.max_concurrent_requests,
    scheduling_policy: Annotated[
        str, typer.Option(help="Order of vLLM's own queue: fcfs or priority.")
    ] = DEFAULT.scheduling_policy,
    speed: Annotated[float, typer.Option(help="Virtual seconds per real second.")] = DEFAULT.speed,
    seed: Annotated[int, typer.Option(help="Seed of the answer lengths that no file contains.")] = DEFAULT.seed,
    truth: Annotated[
        Path | None, typer.Option(help="File of answer lengths by SHA-1 of the prompt (JSON lines).")
    ] = None,
    workload: Annotated[Path | None, typer.Option(help="Workload file with the answer lengths (JSON lines).")] = None,
    exit_with_parent: Annotated[bool, typer.Option("--exit-with-parent", help=_PARENT)] = False,
) -> None:
    """Run one simulated engine with the HTTP API of vLLM or TGI. It prints its URL when it listens."""
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
        config = EngineConfig(**options)  # type: ignore[arg-type]  # EngineConfig checks the values
        serve(config, host, port, ready=_announce, exit_with_parent=exit_with_parent)
    except (WorkloadError, ValueError) as error:
        bad_input(error)
    except OSError as error:
        where = error.filename or f"cannot listen on {host}:{port}"
        failed(f"{where}: {error.strerror}")


def _announce(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()
