"""`python -m bench continuous`."""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, log2
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Annotated

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from backends.simulator.config import EngineConfig
from bench.continuous.comparison import Compared, compare
from bench.continuous.grid import ENGINES, LOADS, Grid, Trial, default_policies
from bench.continuous.tables import markdown, show
from bench.continuous.trials import TrialResult, run_trials
from bench.results import require_plots, write_results
from gateway.cli.history import InstructionsOption
from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, err, failed, print_json, read_settings
from gateway.cli.resources import configured_embedder
from gateway.config import cache_dir
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.errors import RowError, StarvedError
from gateway.prediction.embedder import Embedder, NoEmbedder
from gateway.simulation.experiment import Workload
from gateway.simulation.trained import read_workload, trained_workload
from gateway.simulation.workload import prompt_tokens
from gateway.training.rows import PastRow

PRESET = "llama-8b-a100"

APPLICATIONS_KV_TOKENS = 12_000
"""KV memory that an 8B model in bf16 leaves of 20 GB: 0.9 * 20e9 - 16.06e9 bytes are 14 800 tokens, less activations.
The applications' answers are short. With 80 GB, memory would never be scarce."""

TRACES_KV_TOKENS = 60_000
"""The same model on 26 GB. Memory is scarce there because prompts have a thousand tokens and answers are long."""

MESSAGES_AN_ANSWER = 25
"""Progress messages for a mean answer. A message never reports fewer than 16 more tokens."""

QUICK_ROWS = 12_000
APPLICATIONS = "applications"

CONTEXTS, FITTING_SHARE = (8_192, 16_384, 32_768), 0.999


class ContinuousResults(msgspec.Struct, frozen=True):
    """All runs.

    Attributes:
        saturation: requests a second that one engine sustains, by workload.
        kv_tokens: KV memory of an engine, by workload.
    """

    saturation: dict[str, float]
    kv_tokens: dict[str, int]
    runs: list[Compared]


def continuous(  # noqa: PLR0913 - one parameter an option
    workload: Annotated[
        list[Path] | None, typer.Option(help="Past requests with texts. All files together are one workload.")
    ] = None,
    trace: Annotated[list[Path] | None, typer.Option(help="Arrivals and lengths. Each file is a workload.")] = None,
    instructions: InstructionsOption = None,
    engines: Annotated[str, typer.Option(help="Numbers of engines, separated by commas.")] = ",".join(
        map(str, ENGINES)
    ),
    loads: Annotated[str, typer.Option(help="Arrival rates as shares of saturation, separated by commas.")] = ",".join(
        map(str, LOADS)
    ),
    policies: Annotated[
        str, typer.Option(help="direct, round-robin, fcfs, sjf, hrrn, hrrn:ALPHA, magnus. With @true: true lengths.")
    ] = ",".join(default_policies(quick=False)),
    kv_tokens: Annotated[int, typer.Option(min=1, help="KV memory of an engine in tokens, for --workload.")] = (
        APPLICATIONS_KV_TOKENS
    ),
    trace_kv_tokens: Annotated[
        int, typer.Option(min=1, help="KV memory of an engine in tokens, for --trace.")
    ] = TRACES_KV_TOKENS,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests in each run. By default enough for a steady state.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Try every load on larger fleets too.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two engines, two loads, five policies, fewer requests.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of all arrivals.")] = 0,
    results: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for figures, tables, pictures.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare the queue's policies with direct dispatch on engines with continuous batching."""
    if results:
        require_plots()
    if not workload and not trace:
        bad_input("--workload or --trace: at least one file is needed")
    settings = read_settings(config)
    try:
        grid = Grid(
            _whole_numbers("engines", engines),
            _numbers("loads", loads),
            policies.split(","),
            requests=requests,
            full=full,
            seed=seed,
        )
        if quick:
            grid = replace(grid, engines=(2,), loads=(0.7, 1.2), policies=(), quick=True)
        _ = grid.candidates  # check the names before any training
        embedder = configured_embedder(settings) if workload else NoEmbedder()
        sizes = kv_tokens, trace_kv_tokens
        ready = _workloads(_files(workload, trace), instructions, sizes, embedder, quick=quick)
        trial_results = _run([(one, grid.trials(one)) for one in ready], jobs)
    except (RowError, ValueError) as error:
        bad_input(error)
    except StarvedError as error:
        failed(error)
    found = ContinuousResults(
        {one.name: one.saturation().req_per_s for one in ready},
        {one.name: one.config.capacity_tokens for one in ready},
        compare(trial_results),
    )
    if results:
        _write(results, found, trial_results)
    if as_json:
        print_json(found)
    else:
        show(console, found.runs)


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a list of numbers separated by commas") from None
    if not all(0.0 < number < inf for number in numbers):
        raise ValueError(f"{name}: {text!r}: each number must be above 0 and finite")
    return numbers


def _whole_numbers(name: str, text: str) -> list[int]:
    numbers = _numbers(name, text)
    if not all(number.is_integer() for number in numbers):
        raise ValueError(f"{name}: {text!r} must be whole numbers")
    return [int(number) for number in numbers]


def _files(texts: list[Path] | None, traces: list[Path] | None) -> dict[str, tuple[list[Path], bool]]:
    """Return each workload's files by its name, and whether they are a trace."""
    named = {APPLICATIONS: (texts, False)} if texts else {}
    return named | {path.name.partition(".")[0]: ([path], True) for path in traces or []}


def _workloads(
    files: dict[str, tuple[list[Path], bool]],
    instructions: Path | None,
    kv_tokens: tuple[int, int],
    embedder: Embedder,
    *,
    quick: bool,
) -> list[Workload]:
    """Read the files, and train the predictor for each workload on half of its rows."""
    workloads = []
    for name, (paths, is_trace) in files.items():
        with err.status(f"{name}: training the predictor on half of the rows"):
            rows = read_workload(paths, instructions)
            if quick and len(rows) > QUICK_ROWS:
                rows = rows[:QUICK_ROWS] if is_trace else Random(0).sample(rows, QUICK_ROWS)
            ready = trained_workload(
                name,
                rows,
                _engine(rows, kv_tokens[is_trace]),
                NoEmbedder() if is_trace else embedder,
                progress_tokens=_progress_tokens(rows),
                cache=cache_dir(),
            )
        ready.rows = _without_texts(ready.rows)
        workloads.append(ready)
    return workloads


def _without_texts(rows: Sequence[PastRow]) -> list[PastRow]:
    """Return rows that simulate the same, without their texts: they are sent to other processes."""
    return [
        PastRow(
            app=row.app,
            user=row.user,
            model=row.model,
            t=row.t,
            input_tokens=prompt_tokens(row),
            output_tokens=row.output_tokens,
        )
        for row in rows
    ]


def _engine(rows: list[PastRow], kv_tokens: int) -> EngineConfig:
    """Return engines with the smallest context that holds nearly all rows."""
    lengths = sorted(prompt_tokens(row) + row.output_tokens for row in rows)
    longest = lengths[int(FITTING_SHARE * (len(lengths) - 1))]
    context = next((size for size in CONTEXTS if size >= longest), CONTEXTS[-1])
    return EngineConfig(preset=PRESET, kv_tokens=kv_tokens, max_model_len=min(context, kv_tokens // 16 * 16))


def _progress_tokens(rows: list[PastRow]) -> int:
    mean = fmean(row.output_tokens for row in rows)
    return max(PROGRESS_TOKENS, 2 ** round(log2(mean / MESSAGES_AN_ANSWER)) if mean > MESSAGES_AN_ANSWER else 0)


def _run(trials: list[tuple[Workload, list[Trial]]], jobs: int) -> list[TrialResult]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("simulate", total=sum(len(of_one) for _, of_one in trials))
        return run_trials(trials, jobs, lambda: progress.advance(task))


def _write(results: Path, found: ContinuousResults, trial_results: list[TrialResult]) -> None:
    from bench.continuous.plots import draw  # needs an extra

    page = markdown(found.runs, found.saturation, found.kv_tokens)
    write_results(results, "continuous", found, page, draw(results, trial_results))
