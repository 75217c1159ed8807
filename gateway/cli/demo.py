"""`magnus demo`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from backends.simulator.workload import WorkloadError
from gateway.cli.options import (
    ConfigOption,
    JsonOption,
    bad_input,
    console,
    err,
    failed,
    print_json,
    read_settings,
    run,
)
from gateway.cli.serve import START_ERRORS
from gateway.config import Settings
from gateway.demo.demo import Demo, banner
from gateway.demo.replay import ReplayReport, draw_rows
from gateway.demo.report import replay_table
from gateway.errors import EngineStartError
from gateway.telemetry import logs

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free one. [8080]")]
Engines = Annotated[int, typer.Option(min=1, max=64, help="Simulated engines, each a process of its own.")]
Speed = Annotated[float, typer.Option(min=0.01, max=1000, help="How fast the engines' clocks run.")]
Replay = Annotated[list[Path] | None, typer.Option(help="Workload to send, JSON lines or .gz; may be repeated.")]
Rows = Annotated[int | None, typer.Option(min=1, help="Draw so many of its rows at random. [all]")]
Seed = Annotated[int, typer.Option(help="Of the draw and of the arrivals.")]
Rate = Annotated[float, typer.Option(min=0.01, help="Requests a second, where the rows have no times.")]
Exit = Annotated[bool, typer.Option("--exit", help="Stop after the replay; --json implies it.")]


def demo(  # noqa: PLR0913 - one parameter an option
    port: Port = None,
    engines: Engines = 2,
    speed: Speed = 1.0,
    replay: Replay = None,
    rows: Rows = None,
    rate: Rate = 16.0,
    seed: Seed = 0,
    exit_: Exit = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Run the gateway on simulated engines, with a Postgres of its own; replay a workload through it.

    With --exit, a row that was not answered, or not at its length, or not remembered so, is exit code 1.
    """
    settings = _with_port(read_settings(config), port)
    logs.configure("warning", settings.log.format)
    if as_json and not replay:
        bad_input("--json reports on a replay: name its workload with --replay FILE")
    try:
        workload = draw_rows(replay, rows, seed) if replay else []
    except (WorkloadError, OSError) as error:
        bad_input(error)
    show = Demo(settings, engines, speed, workload, rate, seed)
    try:
        run(_run(show, stay=not (exit_ or as_json), as_json=as_json))
    except (*START_ERRORS, EngineStartError) as error:
        failed(error)


def _with_port(settings: Settings, port: int | None) -> Settings:
    if port is None:
        return settings
    return msgspec.structs.replace(settings, server=msgspec.structs.replace(settings.server, port=port))


async def _run(show: Demo, *, stay: bool, as_json: bool) -> None:
    async with show.running() as gateway:
        if not as_json:
            console.print(banner(gateway), markup=False, soft_wrap=True)
        flawless = True
        if show.rows:
            report = await show.replay(gateway, err)
            _print(report, as_json=as_json)
            flawless = report.flawless
        if stay or not show.rows:
            await gateway.stopped()
        elif not flawless:
            raise typer.Exit(1)


def _print(report: ReplayReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        console.print(replay_table(report))
