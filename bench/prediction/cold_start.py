"""Applications never seen in training: `python -m bench.prediction.cold_start FILE... [--requests N] [--json]`.

Each application in turn is held out whole. The model trained on the others then serves it: N requests to learn its
history and calibration from, the rest to measure. Beside it, the same rows with the application in the training.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.prediction.rows import print_table, read_rows
from gateway.prediction.embedder import Embedder, load_embedder
from gateway.prediction.evaluation import PastRequest, Scored, learn_history, score, split_by_group
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthPredictor


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--instructions", type=Path)
    parser.add_argument(
        "--requests", type=int, default=50, help="that a new application has made before it is measured"
    )
    parser.add_argument("--measured", type=int, default=500, help="requests that follow and are measured")
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "magnus-embedder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    embedder = load_embedder("static", options.cache)
    train, test = split_by_group(read_rows(options.files, options.instructions), seed=options.seed)
    warm = trained(train, embedder, options.trees)
    table = []
    for app in sorted({row.ask.app for row in test}):
        rows = [row for row in test if row.ask.app == app][: options.requests + options.measured]
        cold = trained([row for row in train if row.ask.app != app], embedder, options.trees)
        table.append(compare(app, score(cold, rows), score(warm, rows), options.requests))
    print_table(table, as_json=options.json)


def trained(rows: Sequence[PastRequest], embedder: Embedder, trees: int) -> LengthPredictor:
    """Return a predictor trained on rows, its history warm with them."""
    predictor = LengthPredictor(FeatureExtractor(embedder))
    predictor.serve(fit_predictor(learn_history(predictor.extractor, rows), LengthModel(iterations=trees)))
    return predictor


def compare(app: str, cold: Scored, warm: Scored, requests: int) -> dict[str, Any]:
    """Return a table's row: errors on what follows the first requests."""
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


if __name__ == "__main__":
    main()
