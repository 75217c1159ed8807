"""`magnus train`: trains the length predictor."""

import typer
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.cli.options import ConfigOption, JsonOption, console, err, failed, print_json, read_settings
from gateway.cli.resources import configured_embedder, on_database
from gateway.config import Settings
from gateway.prediction.features import features_version
from gateway.training.process import TrainingOrder, TrainingReport
from gateway.training.training import train as train_model


def train(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Train on the newest requests in the database. The new model serves if it is better than the serving one.

    The exit code is 1 if there are too few requests, or if another process trains.
    """
    settings = read_settings(config)
    order = _order(settings)

    async def work(engine: AsyncEngine) -> None:
        with err.status("Training"):
            report = await train_model(engine, order)
        if as_json:
            print_json(report)
        if report.version is None:
            _exit_untrained(report, as_json=as_json)
        elif not as_json:
            console.print(_table(report))

    on_database(settings, work)


def _order(settings: Settings) -> TrainingOrder:
    prediction = settings.prediction
    embedder = configured_embedder(settings)
    return TrainingOrder(
        database_url=settings.database.url,
        features_version=features_version(embedder),
        window_rows=prediction.window_rows,
        min_rows=prediction.min_train_rows,
        threads=prediction.train_threads,
    )


def _exit_untrained(report: TrainingReport, *, as_json: bool) -> None:
    if as_json:
        raise typer.Exit(1)
    if report.outcome == "busy":
        failed("another process is training; try again later")
    failed(f"too few requests to train on: {report.rows:,} have features, {report.needed:,} are needed")


def _table(report: TrainingReport) -> Table:
    result = "serves now" if report.outcome == "promoted" else "is not better and does not serve"
    title = f"Version {report.version} {result} ({report.rows:,} rows, {report.seconds:.1f} s)"
    table = Table("on the newest rows", title=title)
    table.add_column("new", justify="right")
    table.add_column(report.against or "", justify="right")
    for name, value in report.metrics.items():
        table.add_row(name, f"{value:.4g}", f"{report.champion[name]:.4g}")
    return table
