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
from gateway.simulation.experiment import simulate as run_simulation
from gateway.simulation.report import SimulationReport, report
from gateway.simulation.run import QUEUE_TIMEOUT_S
from gateway.simulation.times import Pattern
from gateway.simulation.trained import read_workload, trained_workload
from gateway.training.rows import PastRow


class PolicyOption(StrEnum):
    """A policy of the gateway's queue, or one of two baselines that have no queue."""

    FCFS = "fcfs"
    SJF = "sjf"
    HRRN = "hrrn"
    MAGNUS = "magnus"
    DIRECT = "direct"
    ROUND_ROBIN = "round-robin"


TRAINED = "trained"
LENGTHS_HELP = (
    "Where predicted lengths come from. learned: from the answers of the run. trained: from the predictor, trained on "
    "half of the rows; the other half is simulated. true: the true lengths. random: lengths of other requests. "
    "10x, 0.1x: a factor of the true lengths."
)


class MetricsOption(StrEnum):
    """What scrapes of the engines return: the metrics of now, always those of the start, or none."""

    FRESH = "fresh"
    FROZEN = "frozen"
    NONE = "none"


def simulate(  # noqa: PLR0913 - one parameter an option
    workload: Annotated[
        list[Path], typer.Option(help="Past requests: JSON lines or a CSV trace, plain or .gz. May be repeated.")
    ],
    policy: Annotated[PolicyOption, typer.Option(help="Scheduling policy.")] = PolicyOption.FCFS,
    alpha: Annotated[float, typer.Option(min=0.01, help="Exponent of the service time in the response ratio.")] = 1.0,
    lengths: Annotated[str, typer.Option(help=LENGTHS_HELP)] = "learned",
    engines: Annotated[int, typer.Option(min=1, max=1024, help="Number of simulated engines.")] = 2,
    preset: Annotated[str, typer.Option(help="Model and GPU whose step times are simulated.")] = "llama-8b-a100",
    kv_tokens: Annotated[int | None, typer.Option(min=1, help="KV memory of each engine in tokens.")] = 60_000,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and answer together, in tokens.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests a second. Rows without times need --rate or --load.")
    ] = None,
    load: Annotated[
        float | None, typer.Option(min=0.01, help="Arrival rate as a share of what the engines sustain.")
    ] = None,
    pattern: Annotated[
        Pattern | None,
        typer.Option(help="How arrivals are spread. By default as the rows' times, or Poisson if rows have none."),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=1, help="Number of requests to simulate. If there are fewer rows, they are repeated."),
    ] = None,
    max_queue: Annotated[int | None, typer.Option(min=1, help="Most requests that may wait.")] = None,
    queue_timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Longest time that a request may wait, in seconds.")
    ] = None,
    metrics: Annotated[MetricsOption, typer.Option(help="What scrapes of the engines return.")] = MetricsOption.FRESH,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the arrivals.")] = 0,
    instructions: InstructionsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the gateway's scheduler on simulated engines in simulated time."""
    conditions = Conditions(
        load=load,
        rate=rate,
        engines=engines,
        lengths=lengths,
        pattern=pattern,
        seed=seed,
        frozen_from_s=0.0 if metrics is MetricsOption.FROZEN else None,
        blind=metrics is MetricsOption.NONE,
        max_queue=max_queue,
        queue_timeout_s=queue_timeout or QUEUE_TIMEOUT_S,
    )
    try:
        config = EngineConfig(preset=preset, kv_tokens=kv_tokens, max_model_len=max_model_len)
        past = read_workload(workload, instructions)
        ready = _workload(past, config, trained=lengths == TRAINED)
        result = _run(ready, SimulatedPolicy(policy.value, alpha), conditions, rows or len(ready.rows))
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


def _run(workload: Workload, policy: SimulatedPolicy, conditions: Conditions, count: int) -> SimulationReport:
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("simulate", total=count)
        conditions = replace(conditions, count=count)
        result = run_simulation(workload, policy, conditions, lambda: progress.advance(task))
    return report(str(policy), result, conditions.max_queue)


def _table(result: SimulationReport) -> Table:
    table = Table("figure", title=f"policy {result.policy}")
    table.add_column("value", justify="right")
    for name in SimulationReport.__struct_fields__[1:]:
        value = getattr(result, name)
        table.add_row(name, "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.3f}")
    return table
