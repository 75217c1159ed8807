"""`python -m bench prediction timings`: the time of a prediction and of a training on one core."""

from collections.abc import Callable, Iterable
from time import perf_counter, process_time
from typing import Annotated, Any

import numpy as np
import typer

from bench.prediction.options import FilesArgument
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import StaticEmbedder
from gateway.prediction.evaluation import learn_history, split_by_group
from gateway.prediction.fitting import TrainingSet, fit_predictor
from gateway.prediction.length_predictor import LengthPredictor

BATCH = 64


def command(
    files: FilesArgument,
    training_rows: Annotated[int, typer.Option(help="Rows of the training.")] = 100_000,
    as_json: JsonOption = False,
) -> None:
    """Measure the time of a prediction and of a training on one core."""
    predictor = LengthPredictor(StaticEmbedder())
    train, test = split_by_group(read_rows(files))
    training = repeated(learn_history(predictor.extractor, train), training_rows)
    start = process_time()
    predictor.serve(fit_predictor(training))
    seconds = process_time() - start
    inputs = [row.input for row in test]
    batches = [inputs[i : i + BATCH] for i in range(0, len(inputs) - BATCH, BATCH)]
    table = [
        quantiles("single prediction", predictor.predict_one, inputs),
        quantiles(f"batch of {BATCH}", predictor.predict, batches),
        {"what": f"training, {len(training)} rows, CPU time", "p50_ms": 1e3 * seconds, "p99_ms": 1e3 * seconds},
    ]
    print_table(table, as_json=as_json)


def repeated(training: TrainingSet, n: int) -> TrainingSet:
    """Return a training set of n rows, drawn with replacement and with a little noise, so no two are equal."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(training), size=n)
    X = training.X[drawn] * rng.normal(1.0, 0.01, (n, 1)).astype(np.float32)
    return TrainingSet(X, training.tokens[drawn], [training.apps[i] for i in drawn])


def quantiles(what: str, predict: Callable[[Any], object], arguments: Iterable[Any]) -> dict[str, Any]:
    """Return a row of the table: quantiles of the time of each call, in ms."""
    seconds = []
    for argument in arguments:
        start = perf_counter()
        predict(argument)
        seconds.append(perf_counter() - start)
    p50, p99 = 1e3 * np.quantile(seconds, (0.5, 0.99))
    return {"what": what, "p50_ms": float(p50), "p99_ms": float(p99)}
