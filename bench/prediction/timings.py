"""What a prediction and a training cost on one core: `python -m bench.prediction.timings FILE... [--json]`."""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

from bench.prediction.rows import print_table, read_rows
from gateway.prediction.embedder import load_embedder
from gateway.prediction.evaluation import learn_history, split_by_group
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.fitting import TrainingSet, fit_predictor
from gateway.prediction.length_predictor import LengthPredictor

BATCH = 64


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--training-rows", type=int, default=100_000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "magnus-embedder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    predictor = LengthPredictor(FeatureExtractor(load_embedder("static", options.cache)))
    train, test = split_by_group(read_rows(options.files))
    training = repeated(learn_history(predictor.extractor, train), options.training_rows)
    start = process_time()
    predictor.serve(fit_predictor(training))
    seconds = process_time() - start
    asks = [row.ask for row in test]
    batches = [asks[i : i + BATCH] for i in range(0, len(asks) - BATCH, BATCH)]
    table = [
        quantiles("single prediction", predictor.predict_one, asks),
        quantiles(f"batch of {BATCH}", predictor.predict, batches),
        {"what": f"training, {len(training)} rows, CPU time", "p50_ms": 1e3 * seconds, "p99_ms": 1e3 * seconds},
    ]
    print_table(table, as_json=options.json)


def repeated(training: TrainingSet, n: int) -> TrainingSet:
    """Return a training set of n rows, drawn with replacement, with a little noise so that no two are the same."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(training), size=n)
    X = training.X[drawn] * rng.normal(1.0, 0.01, (n, 1)).astype(np.float32)
    return TrainingSet(X, training.tokens[drawn], [training.apps[i] for i in drawn])


def quantiles(what: str, predict: Callable[[Any], object], arguments: Iterable[Any]) -> dict[str, Any]:
    """Return a table's row: quantiles of the time of each call, in ms."""
    seconds = []
    for argument in arguments:
        start = perf_counter()
        predict(argument)
        seconds.append(perf_counter() - start)
    p50, p99 = 1e3 * np.quantile(seconds, (0.5, 0.99))
    return {"what": what, "p50_ms": float(p50), "p99_ms": float(p99)}


if __name__ == "__main__":
    main()
