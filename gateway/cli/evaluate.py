"""`magnus evaluate`: measures the length prediction on past requests."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gateway.cli.history import Files, InstructionsOption, read_through
from gateway.cli.options import (
    ConfigOption,
    JsonOption,
    bad_input,
    bytes_read,
    console,
    err,
    failed,
    print_json,
    read_settings,
)
from gateway.cli.resources import configured_embedder
from gateway.config import Settings
from gateway.errors import RowError
from gateway.prediction.evaluation import PastRequest, Scored, evaluate_online
from gateway.prediction.evaluation import evaluate as evaluate_offline
from gateway.prediction.fitting import MIN_ROWS
from gateway.prediction.length_model import LengthModel
from gateway.training.corpus import Corpus
from gateway.training.sample import draw as draw_sample
from gateway.training.sample import first, fitting_rows

SEED = 0
COLUMNS = ("n", "rmse", "mae", "kendall_tau", "p90_coverage", "pinball_p90")

Online = Annotated[
    bool, typer.Option("--online", help="Predict in the order of time, and learn from each row after its prediction.")
]
Plots = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for plots (PNG and SVG).")]


def evaluate(
    files: Files,
    online: Online = False,
    plots: Plots = None,
    instructions: InstructionsOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Train the length predictor on 70 % of past requests and measure it on the rest, with groups kept together.

    The command does not use a database. If the rows do not fit into memory, it uses a part of them.
    """
    settings = read_settings(config)
    if plots and find_spec("matplotlib") is None:
        failed("--plots: matplotlib is not installed; run pip install 'magnus-gateway[plots]'")
    rows = _read_rows(read_through(files, instructions), online=online)
    scored, model = _predict(rows, settings, online=online)
    if plots:
        _draw(plots, scored, model, online=online)
    if as_json:
        print_json(scored.metrics())
    else:
        _show(scored)


def _read_rows(corpus: Corpus, *, online: bool) -> list[PastRequest]:
    """Return as many rows as fit into memory: the first rows if `online`, otherwise a random part."""
    count = fitting_rows(corpus)
    if count < corpus.rows:
        which = "the first ones" if online else "a random part"
        err.print(
            f"magnus: memory holds {count:,} of {corpus.rows:,} rows; using {which}", style="yellow", soft_wrap=True
        )
    if not online and count < 2 * MIN_ROWS:
        bad_input(f"{count:,} rows are too few; at least {2 * MIN_ROWS} are needed to train and to measure")
    try:
        with bytes_read("Reading", corpus.paths) as on_bytes:
            return first(corpus, count, on_bytes) if online else draw_sample(corpus, count, SEED, on_bytes)
    except RowError as error:
        bad_input(error)


def _predict(rows: list[PastRequest], settings: Settings, *, online: bool) -> tuple[Scored, LengthModel]:
    """Predict the rows as the gateway would. Return the predictions, and the model of the last training."""
    embedder = configured_embedder(settings)
    model = LengthModel(thread_count=settings.prediction.train_threads)
    with err.status(f"Predicting {len(rows):,} rows"):
        if online:
            first_training = settings.prediction.min_train_rows
            return evaluate_online(rows, embedder, first_training=first_training, model=model), model
        return evaluate_offline(rows, embedder, seed=SEED, model=model), model


def _draw(directory: Path, scored: Scored, model: LengthModel, *, online: bool) -> None:
    """Draw the plots and print the names of their files."""
    from gateway.cli.plots import draw_plots  # needs the extra `plots`

    try:
        for path in draw_plots(directory, scored, model, online=online):
            err.print(f"magnus: wrote {path}", markup=False, soft_wrap=True)
    except OSError as error:
        failed(f"{directory}: {error.strerror}")


def _show(scored: Scored) -> None:
    """Print the metrics as a table."""
    metrics = scored.metrics()
    table = Table("application", title="Prediction")
    for heading in ("rows", "RMSE", "MAE", "Kendall's tau", "p90 covers", "pinball p90"):
        table.add_column(heading, justify="right")
    for app, row in [*metrics["by_app"].items(), ("all", metrics)]:
        table.add_row(app, *(_figure(row[name]) for name in COLUMNS))
    console.print(table)
    p50_ms, p99_ms = metrics["predict_ms_p50"], metrics["predict_ms_p99"]
    console.print(f"One prediction: p50 {p50_ms:.3f} ms, p99 {p99_ms:.3f} ms")


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
