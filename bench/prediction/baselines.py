"""`python -m bench prediction baselines`: the paper's predictors and ours on the same rows.

The predictors: the application's mean; UILO, a line on the input length per application; RAFT, a random forest on the
input length per application; INST, one forest on the input length and the embedding of the instruction; USIN, INST with
the embedding of the user input. As in the paper, the embeddings are compressed to 4 and 16 dimensions.

Source: Cheng et al., Enabling Efficient Batch Serving for LMaaS via Generation Length Prediction (arXiv 2406.04785).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression

from bench.prediction.options import FilesArgument, InstructionsOption, SeedOption
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import StaticEmbedder
from gateway.prediction.evaluation import Scored, learn_history, score, split_by_group
from gateway.prediction.features import FEATURE_NAMES, SYSTEM_EMBEDDING, TEXT_EMBEDDING
from gateway.prediction.fitting import TrainingSet, fit_predictor
from gateway.prediction.length_model import Compression
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.metrics import kendall_tau

Floats = NDArray[np.float64]
Fit = Callable[[TrainingSet, TrainingSet], Floats]

INPUT_LENGTH = FEATURE_NAMES.index("pieces")


def application_mean(train: TrainingSet, test: TrainingSet) -> Floats:
    """Predict each application's mean answer."""
    return _per_app(train, test, lambda _: np.zeros((1, 1)), LinearRegression)


def uilo(train: TrainingSet, test: TrainingSet) -> Floats:
    """Predict by a line on the input length, one per application."""
    return _per_app(train, test, _length, LinearRegression)


def raft(train: TrainingSet, test: TrainingSet) -> Floats:
    """Predict by a random forest on the input length, one per application."""
    return _per_app(train, test, _length, _forest)


def inst(train: TrainingSet, test: TrainingSet) -> Floats:
    """Predict by one random forest on the input length and the embedding of the instruction."""
    return _pooled(train, test, with_text=False)


def usin(train: TrainingSet, test: TrainingSet) -> Floats:
    """Predict by one random forest on the input length and the embeddings of the instruction and the input."""
    return _pooled(train, test, with_text=True)


BASELINES: dict[str, Fit] = {
    "application mean": application_mean,
    "UILO": uilo,
    "RAFT": raft,
    "INST": inst,
    "USIN": usin,
}


def compare(train: TrainingSet, test: TrainingSet, ours: Scored) -> list[dict[str, Any]]:
    """Return the rows of the table: every baseline, then ours. The last columns are the MAE by application."""
    rows = [
        _row(name, predicted, predicted, test) for name, fit in BASELINES.items() for predicted in [fit(train, test)]
    ]
    return [*rows, _row("ours", ours.mean, ours.median, test)]


def command(
    files: FilesArgument,
    instructions: InstructionsOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Measure the predictors of the paper and ours on the same rows."""
    rows = read_rows(files, instructions)
    train_rows, test_rows = split_by_group(rows, seed=seed)
    predictor = LengthPredictor(StaticEmbedder())
    train = learn_history(predictor.extractor, train_rows)
    test = learn_history(LengthPredictor(StaticEmbedder()).extractor, test_rows)
    predictor.serve(fit_predictor(train))
    print_table(compare(train, test, score(predictor, test_rows)), as_json=as_json)


def _row(name: str, mean: Floats, median: Floats, test: TrainingSet) -> dict[str, Any]:
    apps = np.asarray(test.apps)
    errors = np.abs(median - test.tokens)
    return {
        "predictor": name,
        "rmse": float(np.sqrt(np.mean((mean - test.tokens) ** 2))),
        "mae": float(np.mean(errors)),
        "kendall_tau": kendall_tau(np.round(median), test.tokens),
    } | {f"mae {app}": float(np.mean(errors[apps == app])) for app in sorted(set(test.apps))}


def _length(part: TrainingSet) -> Floats:
    return np.asarray(np.nan_to_num(np.expm1(part.X[:, [INPUT_LENGTH]].astype(float))))


def _forest() -> RandomForestRegressor:
    return RandomForestRegressor(n_estimators=100, min_samples_leaf=2, random_state=0, n_jobs=1)


def _per_app(
    train: TrainingSet, test: TrainingSet, inputs: Callable[[TrainingSet], Floats], regressor: Callable[[], Any]
) -> Floats:
    x, x_test = (np.broadcast_to(inputs(part), (len(part), 1)) for part in (train, test))
    predicted = np.full(len(test), train.tokens.mean())
    apps, test_apps = np.asarray(train.apps), np.asarray(test.apps)
    for app in set(train.apps) & set(test.apps):
        model = regressor().fit(x[apps == app], train.tokens[apps == app])
        predicted[test_apps == app] = model.predict(x_test[test_apps == app])
    return predicted


def _pooled(train: TrainingSet, test: TrainingSet, *, with_text: bool) -> Floats:
    system = Compression.fit(train.X[:, SYSTEM_EMBEDDING], 4)
    text = Compression.fit(train.X[:, TEXT_EMBEDDING], 16)
    names = {app: i for i, app in enumerate(sorted(set(train.apps)))}

    def inputs(part: TrainingSet) -> Floats:
        app = np.array([[names.get(app, -1)] for app in part.apps], float)
        columns = [_length(part), app, system(part.X[:, SYSTEM_EMBEDDING])]
        return np.hstack([*columns, text(part.X[:, TEXT_EMBEDDING])] if with_text else columns)

    return np.asarray(_forest().fit(inputs(train), train.tokens).predict(inputs(test)))
