"""`python -m bench overhead`."""

import sys
from pathlib import Path
from typing import Annotated

import aiohttp
import msgspec
import typer
import uvloop

from bench.overhead import litellm
from bench.overhead.client import BadAnswer
from bench.overhead.measure import Plan, measure
from bench.overhead.processes import StartError
from bench.overhead.results import OverheadResults, markdown, rich_table
from gateway.cli.options import JsonOption, console, err, failed, print_json
from gateway.config import cache_dir


def overhead(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer requests, fewer rounds: about two minutes.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Also memory over 200,000 requests, which takes long.")] = (
        False
    ),
    peers: Annotated[bool, typer.Option("--peers", help="Also LiteLLM, installed in an environment of its own.")] = (
        False
    ),
    results: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for the table and the figures.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the gateway itself costs: CPU a request, added latency, memory. Linux, two cores or more."""
    if sys.platform != "linux":
        failed("a process's accounts are read off /proc, which Linux alone has")
    try:
        with err.status("") as status:

            def tell(what: str) -> None:
                status.update(what)

            environment = None
            if peers:
                tell("installing LiteLLM")
                environment = litellm.install(cache_dir())
            found = uvloop.run(measure(Plan(quick, memory, environment), tell))
    except (StartError, OSError) as error:
        failed(error)
    except ExceptionGroup as errors:  # clients run side by side
        wrong = errors.subgroup((BadAnswer, aiohttp.ClientError, TimeoutError))
        if wrong is None:
            raise
        failed(str(wrong.exceptions[0]) or "a client has waited too long for its answer")
    if results:
        _keep(results, found)
    if as_json:
        print_json(found)
    else:
        console.print(rich_table(found))


def _keep(results: Path, found: OverheadResults) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
        figures, page = results / "overhead.json", results / "overhead.md"
        figures.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        page.write_text(markdown(found))
    except OSError as error:
        failed(f"{results}: {error.strerror}")
    for written in (figures, page):
        err.print(f"magnus: wrote {written}", markup=False, soft_wrap=True)
