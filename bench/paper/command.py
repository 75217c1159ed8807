"""`python -m bench paper`."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.progress import Progress

from backends.simulator.config import EngineConfig
from bench.paper.experiment import BASELINE, POLICIES, RATES, compare
from bench.paper.jobs import Knowledge, Sample, samples, with_lengths
from bench.paper.report import PaperReport
from bench.paper.tables import markdown, rich_table
from bench.paper.testbed import ENGINES
from bench.results import require_plots, write_results
from gateway.cli.history import InstructionsOption
from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, err, print_json, read_settings
from gateway.cli.resources import configured_embedder
from gateway.config import Settings, cache_dir
from gateway.errors import RowError
from gateway.simulation.trained import read_workload, split_rows, trained_workload
from gateway.training.rows import PastRow

PRESET = "chatglm-6b-v100"
DEFAULT_RATES = ",".join(f"{rate:g}" for rate in RATES)


class PaperResults(msgspec.Struct, frozen=True):
    """All runs of one comparison, rate by rate."""

    lengths: Knowledge
    engines: int
    seed: int
    runs: list[PaperReport]


def paper(  # noqa: PLR0913 - one parameter an option
    workload: Annotated[list[Path], typer.Option(help="Past requests: JSON lines, plain or .gz. May be repeated.")],
    instructions: InstructionsOption = None,
    rates: Annotated[str, typer.Option(help="Requests a second, separated by commas.")] = DEFAULT_RATES,
    requests: Annotated[
        int | None, typer.Option(min=1, help="Requests at each rate. By default as many as arrive in 10 minutes.")
    ] = None,
    lengths: Annotated[
        Knowledge, typer.Option(help="Predicted lengths: of the trained predictor, true with noise, or true.")
    ] = Knowledge.TRAINED,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the arrivals.")] = 0,
    results: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for figures, tables, pictures.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare batch schedulers as in arXiv 2406.04785: ChatGLM-6B on seven simulated V100s."""
    settings = read_settings(config)
    if results:
        require_plots()
    try:
        taken = _samples(read_workload(workload, instructions), lengths, settings)
        runs = _run(taken, _parsed(rates), requests, seed)
    except (RowError, ValueError) as error:
        bad_input(error)
    found = PaperResults(lengths, ENGINES, seed, runs)
    if results:
        _write(results, found)
    if as_json:
        print_json(found)
    else:
        title = f"{found.engines} engines, lengths {found.lengths}; changes against {BASELINE} at the same rate"
        console.print(rich_table(title, found.runs))


def _parsed(rates: str) -> list[float]:
    try:
        parsed = sorted({float(rate) for rate in rates.split(",")})
    except ValueError:
        raise ValueError(f"rates: {rates!r} is not a list of numbers separated by commas") from None
    if not parsed[0] > 0.0 or parsed[-1] == float("inf"):
        raise ValueError(f"rates: {rates!r}: each rate must be above 0 and finite")
    return parsed


def _samples(rows: list[PastRow], lengths: Knowledge, settings: Settings) -> list[Sample]:
    """Return samples of the half of the rows that the predictor is not trained on."""
    if lengths is not Knowledge.TRAINED:
        return with_lengths(samples(split_rows(rows)[1]), lengths)
    embedder = configured_embedder(settings)
    with err.status("Training the predictor on the other half of the rows"):
        trained = trained_workload("paper", rows, EngineConfig(preset=PRESET), embedder, cache=cache_dir())
    return samples(trained.rows, trained.forecasts)


def _run(taken: list[Sample], rates: list[float], requests: int | None, seed: int) -> list[PaperReport]:
    runs = []
    with Progress(console=err, transient=True) as progress:
        task = progress.add_task("simulate", total=len(rates) * len(POLICIES))
        for rate in rates:
            for run in compare(taken, rate, count=requests, seed=seed):
                runs.append(run)
                progress.advance(task)
    return runs


def _write(results: Path, found: PaperResults) -> None:
    from bench.paper.plots import draw  # needs an extra

    write_results(results, "paper", found, markdown(found.runs), draw(results, found.runs))
