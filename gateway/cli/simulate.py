"""`magnus simulate`."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from backends.simulator.config import EngineConfig
from gateway.cli.history import InstructionsOption
from gateway.cli.options import JsonOption, bad_input, console, err, failed, print_json, read_settings
from gateway.cli.resources import configured_embedder
from gateway.errors import RowError, StarvedError
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload
from gateway.simulation.experiment import simulate as simulated
from gateway.simulation.prepare import read_workload, trained_workload
from gateway.simulation.report import SimulationReport, report
from gateway.simulation.run import QUEUE_TIMEOUT_S
from gateway.simulation.times import Pattern
from gateway.training.rows import PastRow


class Policy(StrEnum):
    """What decides: the gateway's queue, or nothing but the choice of an engine."""

    FCFS = "fcfs"
    SJF = "sjf"
    HRRN = "hrrn"
    MAGNUS = "magnus"
    DIRECT = "direct"
    ROUND_ROBIN = "round-robin"


TRAINED = "trained"
LENGTHS_HELP = (
    "Predicted lengths: learned on the way; of the predictor, trained on half of the rows, which is not simulated then;"
    " true; random; or 10x, 0.1x: a factor of the truth."
)


class Metrics(StrEnum):
    """What looks at the engines show."""

    FRESH = "fresh"
    FROZEN = "frozen"
    NONE = "none"


def simulate(  # noqa: PLR0913 - one parameter an option
    workload: Annotated[list[Path], typer.Option(help="Rows, JSON lines or a CSV trace, or .gz; may be repeated.")],
    policy: Annotated[Policy, typer.Option(help="What decides.")] = Policy.FCFS,
    alpha: Annotated[float, typer.Option(min=0.01, help="Exponent of the service time in the response ratio.")] = 1.0,
    lengths: Annotated[str, typer.Option(help=LENGTHS_HELP)] = "learned",
    engines: Annotated[int, typer.Option(min=1, max=1024, help="Simulated engines.")] = 2,
    preset: Annotated[str, typer.Option(help="Model and GPU whose step times are simulated.")] = "llama-8b-a100",
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="KV memory of each in tokens.")] = 60_000,
    max_model_len: Annotated[int | None, typer.Option(min=2, help="Longest prompt and answer together.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second; this or --load if rows have no times.")
    ] = None,
    load: Annotated[
        float | None, typer.Option(min=0.01, help="Requests a second, as a share of what the engines can do.")
    ] = None,
    pattern: Annotated[
        Pattern | None, typer.Option(help="Arrivals; by default as the rows' times, Poisson if they have none.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Simulate so many requests; more than there are rows repeat them.")
    ] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, help="Requests that may wait.")] = None,
    queue_timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds that one may wait.")] = None,
    metrics: Annotated[Metrics, typer.Option(help="What looks at the engines show.")] = Metrics.FRESH,
    seed: Annotated[int, typer.Option(help="Of the draw and of the arrivals.")] = 0,
    instructions: InstructionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the scheduling core on simulated engines in simulated time."""
    conditions = Conditions(
        load=load,
        rate=rate,
        engines=engines,
        lengths=lengths,
        pattern=pattern,
        seed=seed,
        frozen_from_s=0.0 if metrics is Metrics.FROZEN else None,
        blind=metrics is Metrics.NONE,
        max_queue=max_queue,
        queue_timeout_s=queue_timeout or QUEUE_TIMEOUT_S,
    )
    try:
        config = EngineConfig(preset=preset, kv_tokens=kv_tokens, max_model_len=max_model_len)
        past = read_workload(workload, instructions)
        known = _workload(past, config, trained=lengths == TRAINED)
        result = _run(known, SimulatedPolicy(policy.value, alpha), conditions, rows or len(known.rows))
    except (RowError, ValueError) as error:
        bad_input(error)
    except StarvedError as error:
        failed(error)
    if as_json:
        print_json(result)
    else:
        console.print(_table(result))


def _workload(past: list[PastRow], config: EngineConfig, *, trained: bool) -> Workload:
    if not trained:
        return Workload("rows", past, config)
    embedder = configured_embedder(read_settings(None))
    with err.status("Training on half of the rows"):
        return trained_workload("rows", past, config, embedder)


def _run(workload: Workload, contender: SimulatedPolicy, conditions: Conditions, count: int) -> SimulationReport:
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("simulate", total=count)
        conditions = replace(conditions, count=count)
        outcome = simulated(workload, contender, conditions, lambda: progress.advance(task))
    return report(str(contender), outcome, conditions.max_queue)


def _table(result: SimulationReport) -> Table:
    table = Table("figure", title=f"policy {result.policy}")
    table.add_column("value", justify="right")
    for name in SimulationReport.__struct_fields__[1:]:
        value = getattr(result, name)
        table.add_row(name, "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    return table
