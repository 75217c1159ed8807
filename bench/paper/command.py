"""`python -m bench paper`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.progress import Progress
from rich.table import Table

from backends.simulator.config import EngineConfig
from bench.paper.experiment import BASELINE, POLICIES, RATES, compare
from bench.paper.jobs import Knowledge, Sample, knowing, samples
from bench.paper.report import PaperReport
from bench.paper.testbed import ENGINES
from gateway.cli.history import InstructionsOption
from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, err, failed, print_json, read_settings
from gateway.cli.resources import configured_embedder
from gateway.config import Settings, cache_dir
from gateway.errors import RowError
from gateway.simulation.prepare import read_workload, trained_workload
from gateway.simulation.trained import split
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
    workload: Annotated[list[Path], typer.Option(help="Rows, JSON lines or .gz; may be repeated.")],
    instructions: InstructionsOption = None,
    rates: Annotated[str, typer.Option(help="Requests a second, with commas between.")] = DEFAULT_RATES,
    requests: Annotated[
        int | None, typer.Option(min=1, help="At each rate; as many as arrive in 10 minutes if not given.")
    ] = None,
    lengths: Annotated[
        Knowledge, typer.Option(help="From the trained predictor, or the truth with noise or without.")
    ] = Knowledge.TRAINED,
    seed: Annotated[int, typer.Option(help="Of the draw and of the arrivals.")] = 0,
    results: Annotated[Path | None, typer.Option(file_okay=False, help="Folder for figures and pictures.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Compare batch schedulers as in arXiv 2406.04785: ChatGLM-6B on seven simulated V100s."""
    settings = read_settings(config)
    if results and find_spec("matplotlib") is None:
        failed("--results needs matplotlib: pip install 'magnus-gateway[plots]'")
    try:
        taken = _samples(read_workload(workload, instructions), lengths, settings)
        runs = _run(taken, _parsed(rates), requests, seed)
    except (RowError, ValueError) as error:
        bad_input(error)
    found = PaperResults(lengths, ENGINES, seed, runs)
    if results:
        _keep(results, found)
    if as_json:
        print_json(found)
    else:
        _show(found)


def _parsed(rates: str) -> list[float]:
    try:
        parsed = sorted({float(rate) for rate in rates.split(",")})
    except ValueError:
        raise ValueError(f"rates: {rates!r} are not numbers with commas between") from None
    if not parsed[0] > 0.0 or parsed[-1] == float("inf"):
        raise ValueError(f"rates: {rates!r}: each is to be above 0 and finite")
    return parsed


def _samples(rows: list[PastRow], lengths: Knowledge, settings: Settings) -> list[Sample]:
    """Take the half of the rows that nothing is trained on."""
    if lengths is not Knowledge.TRAINED:
        return knowing(samples(split(rows)[1]), lengths)
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


def _keep(results: Path, found: PaperResults) -> None:
    from bench.paper.plots import draw  # needs an extra

    try:
        results.mkdir(parents=True, exist_ok=True)
        path = results / "paper.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        for written in (path, *draw(results, found.runs)):
            err.print(f"magnus: wrote {written}", markup=False, soft_wrap=True)
    except OSError as error:
        failed(f"{results}: {error.strerror}")


def _show(found: PaperResults) -> None:
    title = f"{found.engines} engines, lengths {found.lengths}; changes against {BASELINE} at the same rate"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("policy", "req/s", "change", "tok/s", "valid", "mean s", "change", "p99 s", "OOM", "batch"):
        table.add_column(heading, justify="left" if heading == "policy" else "right", no_wrap=True)
    baseline = found.runs[0]
    for run in found.runs:
        if run.policy == BASELINE:
            baseline = run
            table.add_section()
            table.add_row(f"[bold]{run.rate:g} req/s[/bold]")
        table.add_row(*_cells(run, baseline))
    console.print(table)


def _cells(run: PaperReport, baseline: PaperReport) -> tuple[str, ...]:
    throughput, mean = run.gain(baseline)
    return (
        run.policy,
        f"{run.req_per_s:.2f}",
        f"{throughput:+.0%}",
        f"{run.tok_per_s:,.0f}",
        f"{run.valid_tok_per_s:,.0f}",
        f"{run.mean_s:,.1f}",
        f"{mean:+.1%}",
        f"{run.p99_s:,.0f}",
        f"{run.out_of_memory}",
        "-" if run.batch_size is None else f"{run.batch_size:.1f}",
    )
