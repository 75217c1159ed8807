"""`magnus simulate`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from backends.simulator.config import EngineConfig
from gateway.cli.options import JsonOption, bad_input, console, err, print_json
from gateway.scheduling.scheduler import Scheduler
from gateway.simulation.direct import DirectScheduler
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.report import SimulationReport, report
from gateway.simulation.run import Core, LearnedLengths, Simulation, TrueLengths
from gateway.simulation.workload import Arrival, arrivals
from gateway.training.rows import RowError, read_rows

UNBOUNDED = 10**9


class Policy(StrEnum):
    """What decides: the gateway's queue, or nothing but the choice of an engine."""

    FCFS = "fcfs"
    DIRECT = "direct"
    ROUND_ROBIN = "round-robin"


class Knowledge(StrEnum):
    """Where predicted lengths come from."""

    LEARNED = "learned"
    TRUE = "true"


def simulate(  # noqa: PLR0913 - one parameter an option
    workload: Annotated[list[Path], typer.Option(help="Rows, JSON lines or a CSV trace, or .gz; may be repeated.")],
    policy: Annotated[Policy, typer.Option(help="What decides.")] = Policy.FCFS,
    lengths: Annotated[Knowledge, typer.Option(help="Lengths learned on the way, or the truth.")] = Knowledge.LEARNED,
    engines: Annotated[int, typer.Option(min=1, max=1024, help="Simulated engines.")] = 2,
    preset: Annotated[str, typer.Option(help="Model and GPU whose step times are simulated.")] = "llama-8b-a100",
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="KV memory of each in tokens.")] = 60_000,
    max_model_len: Annotated[int | None, typer.Option(min=2, help="Longest prompt and answer together.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second; needed if rows have no times.")
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Simulate so many of the rows.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the arrivals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run the scheduling core on simulated engines in simulated time."""
    try:
        config = EngineConfig(preset=preset, kv_tokens=kv_tokens, max_model_len=max_model_len)
        past = [row for path in workload for row in read_rows(path)]
        arriving = arrivals(past, count=rows, rate=rate, seed=seed)
        fleet = [SimulatedBackend(f"gpu-{i}", config) for i in range(engines)]
        result = _run(policy, lengths, fleet, arriving)
    except (RowError, ValueError) as error:
        bad_input(error)
    if as_json:
        print_json(result)
    else:
        console.print(_table(result))


def _run(
    policy: Policy, lengths: Knowledge, fleet: list[SimulatedBackend], arriving: list[Arrival]
) -> SimulationReport:
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("simulate", total=len(arriving))
        simulation = Simulation(
            _core(policy),
            TrueLengths() if lengths is Knowledge.TRUE else LearnedLengths(),
            fleet,
            on_progress=lambda: progress.advance(task),
        )
        return report(policy, simulation.run(arriving), fleet)


def _core(policy: Policy) -> Core:
    if policy is Policy.FCFS:
        return Scheduler(max_queue=UNBOUNDED)
    return DirectScheduler(round_robin=policy is Policy.ROUND_ROBIN)


def _table(result: SimulationReport) -> Table:
    table = Table("figure", title=f"policy {result.policy}")
    table.add_column("value", justify="right")
    for name in SimulationReport.__struct_fields__[1:]:
        value = getattr(result, name)
        table.add_row(name, f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    return table
