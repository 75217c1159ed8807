"""`python -m bench prediction cold-start`: applications that were not in the training.

Each application in turn is held out. A model that was trained on the others serves it: the first requests teach its
history and calibration, and the next ones are measured. The same rows are also measured with the application in the
training.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from bench.prediction.options import FilesArgument, InstructionsOption, SeedOption, TreesOption
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import Embedder, StaticEmbedder
from gateway.prediction.evaluation import PastRequest, Scored, learn_history, score, split_by_group
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthPredictor


def command(
    files: FilesArgument,
    instructions: InstructionsOption = None,
    requests: Annotated[int, typer.Option(help="Requests of a new application before it is measured.")] = 50,
    measured: Annotated[int, typer.Option(help="Requests that are measured then.")] = 500,
    trees: TreesOption = 1000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure applications that were held out of the training."""
    embedder = StaticEmbedder()
    train, test = split_by_group(read_rows(files, instructions), seed=seed)
    warm = trained(train, embedder, trees)
    table = []
    for app in sorted({row.input.app for row in test}):
        rows = [row for row in test if row.input.app == app][: requests + measured]
        cold = trained([row for row in train if row.input.app != app], embedder, trees)
        table.append(compare(app, score(cold, rows), score(warm, rows), requests))
    print_table(table, as_json=as_json)


def trained(rows: Sequence[PastRequest], embedder: Embedder, trees: int) -> LengthPredictor:
    """Return a predictor that was trained on rows and remembers them."""
    predictor = LengthPredictor(embedder)
    predictor.serve(fit_predictor(learn_history(predictor.extractor, rows), LengthModel(iterations=trees)))
    return predictor


def compare(app: str, cold: Scored, warm: Scored, requests: int) -> dict[str, Any]:
    """Return a row of the table: the errors after the first requests."""
    cold_mae, warm_mae = (float(abs(s.median - s.actual)[requests:].mean()) for s in (cold, warm))
    first_mae = float(abs(cold.median - cold.actual)[:requests].mean())
    coverage = float((cold.actual <= cold.p90)[requests:].mean())
    return {
        "app": app,
        "first_mae": first_mae,
        "cold_mae": cold_mae,
        "warm_mae": warm_mae,
        "ratio": cold_mae / warm_mae,
        "cold_p90_coverage": coverage,
    }
