"""`python -m bench overhead`."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from bench.load_client import LoadError
from bench.overhead import litellm
from bench.overhead.measure import Plan, measure
from bench.overhead.results import OverheadResults, markdown, rich_table
from bench.warm_gateway import StartError
from gateway.cli.options import JsonOption, console, err, failed, print_json
from gateway.config import cache_dir


def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests and rounds: about two minutes.")] = False,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also measure memory over 200,000 requests, which takes long.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also measure LiteLLM, installed in an environment of its own.")
    ] = False,
    against: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Also measure another checkout, which has a .venv, and print the ratio."
        ),
    ] = None,
    results: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for the table and the figures.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the gateway itself costs: CPU per request, added latency, memory. Linux, two cores or more."""
    if sys.platform != "linux":
        failed("this benchmark reads CPU times from /proc, which only Linux has")
    try:
        with err.status("") as status:
            environment = None
            if peers:
                status.update("installing LiteLLM")
                environment = litellm.install(cache_dir())
            plan = Plan(quick, memory, environment, against)
            found = uvloop.run(measure(plan, status.update))
    except (StartError, OSError) as error:
        failed(error)
    except ExceptionGroup as errors:  # the clients run in a task group
        wrong = errors.subgroup((LoadError, TimeoutError))
        if wrong is None:
            raise
        failed(str(wrong.exceptions[0]) or "an answer took too long")
    if results:
        _write(results, found)
    if as_json:
        print_json(found)
    else:
        console.print(rich_table(found))


def _write(results: Path, found: OverheadResults) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
        figures, page = results / "overhead.json", results / "overhead.md"
        figures.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        page.write_text(markdown(found))
    except OSError as error:
        failed(f"{results}: {error.strerror}")
    for written in (figures, page):
        err.print(f"magnus: wrote {written}", markup=False, soft_wrap=True)
