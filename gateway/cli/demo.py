"""`magnus demo`: the gateway on simulated engines."""

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
from gateway.errors import EngineStartError, StartInterrupted
from gateway.telemetry import logs

Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the gateway; 0 takes a free port. [8080]")]
Engines = Annotated[int, typer.Option(min=1, max=64, help="Number of simulated engines. Each is a process.")]
Speed = Annotated[float, typer.Option(min=0.01, max=1000, help="Virtual seconds per real second in the engines.")]
Replay = Annotated[
    list[Path] | None, typer.Option(help="Workload file to send (JSON lines, plain or .gz). May be repeated.")
]
Rows = Annotated[int | None, typer.Option(min=1, help="Number of rows to draw at random. [all]")]
Seed = Annotated[int, typer.Option(help="Seed of the draw and of the arrival times.")]
Rate = Annotated[float, typer.Option(min=0.01, help="Requests per second, for rows without times.")]
Exit = Annotated[bool, typer.Option("--exit", help="Stop after the replay. --json implies this.")]


def demo(  # noqa: PLR0913 - one parameter per option
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
    """Run the gateway on simulated engines with an embedded Postgres, and replay a workload if one is given.

    With --exit or --json, the exit code is 1 if a row got no answer, an answer of the wrong length, or no stored
    record.
    """
    settings = _with_port(read_settings(config), port)
    logs.configure("warning", settings.log.format)
    if as_json and not replay:
        bad_input("--json: reports on a replay, so --replay FILE is required")
    try:
        workload = draw_rows(replay, rows, seed) if replay else []
    except (WorkloadError, OSError) as error:
        bad_input(error)
    the_demo = Demo(settings, engines, speed, workload, rate, seed)
    try:
        run(_run(the_demo, stay=not (exit_ or as_json), as_json=as_json))
    except (*START_ERRORS, EngineStartError, StartInterrupted) as error:
        failed(error)


def _with_port(settings: Settings, port: int | None) -> Settings:
    port = settings.server.port if port is None else port
    server = msgspec.structs.replace(settings.server, port=port, drain_delay_s=0.0)
    return msgspec.structs.replace(settings, server=server)


async def _run(the_demo: Demo, *, stay: bool, as_json: bool) -> None:
    def print_step(step: str) -> None:
        if not as_json:
            console.print(f"{step} ...", markup=False, soft_wrap=True)

    async with the_demo.running(print_step) as gateway:
        if not as_json:
            console.print(banner(gateway), markup=False, soft_wrap=True)
        flawless = True
        if the_demo.rows:
            report = await the_demo.replay(gateway, err)
            _print(report, as_json=as_json)
            flawless = report.flawless
        if stay or not the_demo.rows:
            await gateway.stopped()
        elif not flawless:
            raise typer.Exit(1)


def _print(report: ReplayReport, *, as_json: bool) -> None:
    if as_json:
        print_json(report)
    else:
        console.print(replay_table(report))
