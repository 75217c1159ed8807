"""The work of `magnus evaluate`: rows into memory, predictions, and what is shown of them."""

from pathlib import Path

from rich.table import Table

from gateway.cli.options import bad_input, bytes_read, console, err, failed
from gateway.cli.resources import configured_embedder
from gateway.config import Settings
from gateway.errors import RowError
from gateway.prediction.evaluation import PastRequest, Scored, evaluate, evaluate_online
from gateway.prediction.fitting import MIN_ROWS
from gateway.prediction.length_model import LengthModel
from gateway.training.corpus import Corpus
from gateway.training.sample import draw as draw_rows
from gateway.training.sample import first, fitting_rows

SEED = 0
COLUMNS = ("n", "rmse", "mae", "kendall_tau", "p90_coverage", "pinball_p90")


def read_rows(corpus: Corpus, *, online: bool) -> list[PastRequest]:
    """Read as many rows as memory may hold: the first where order matters, else a random part."""
    count = fitting_rows(corpus)
    if count < corpus.rows:
        which = "first" if online else "randomly drawn"
        err.print(f"magnus: {count:,} {which} of {corpus.rows:,} rows are used", style="yellow", soft_wrap=True)
    if not online and count < 2 * MIN_ROWS:
        bad_input(f"{count:,} rows are too few to train on and to measure by: at least {2 * MIN_ROWS} are needed")
    try:
        with bytes_read("Reading", corpus.paths) as on_bytes:
            return first(corpus, count, on_bytes) if online else draw_rows(corpus, count, SEED, on_bytes)
    except RowError as error:
        bad_input(error)


def predict(rows: list[PastRequest], settings: Settings, *, online: bool) -> tuple[Scored, LengthModel]:
    """Predict the rows as the gateway would. Returns the model too, as it was fitted last."""
    embedder = configured_embedder(settings)
    model = LengthModel(thread_count=settings.prediction.train_threads)
    with err.status(f"Predicting {len(rows):,} rows"):
        if online:
            first_training = settings.prediction.min_train_rows
            return evaluate_online(rows, embedder, first_training=first_training, model=model), model
        return evaluate(rows, embedder, seed=SEED, model=model), model


def draw(directory: Path, scored: Scored, model: LengthModel, *, online: bool) -> None:
    """Draw the pictures and name their files."""
    from gateway.cli.plots import draw_plots  # needs an extra

    try:
        for path in draw_plots(directory, scored, model, online=online):
            err.print(f"magnus: wrote {path}", markup=False, soft_wrap=True)
    except OSError as error:
        failed(f"{directory}: {error.strerror}")


def show(scored: Scored) -> None:
    """Print the metrics for people."""
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
