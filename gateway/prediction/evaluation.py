"""How good predictions are on rows of the past: the metrics, the split, and the two ways of measuring.

`evaluate` trains on one part and serves the other, as the gateway would: each answer is predicted before it is learned
from. `evaluate_online` does so from the first row on, in time order, with trainings as the rows come in.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from gateway.prediction.distribution import expected_logs
from gateway.prediction.embedder import Embedder
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.fitting import MIN_ROWS, TrainingSet, fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthForecast, LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request with its outcome; None is unknown.

    Rows of one `group` share an input. `t` is the arrival in seconds.
    """

    ask: PredictionInput
    output_tokens: int
    input_tokens: int | None = None
    cut: bool = False
    t: float | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Predictions beside what came, (n,) each, in tokens.

    `expected_logs` is the mean of log tokens; `seconds` is what each prediction took.
    """

    apps: NDArray[np.str_]
    actual: Floats
    mean: Floats
    median: Floats
    p90: Floats
    expected_logs: Floats
    seconds: Floats

    def metrics(self) -> dict[str, Any]:
        """Return `n, rmse, mae, kendall_tau, p90_coverage, pinball_p90, predict_ms_p50, predict_ms_p99, by_app`."""
        apps = sorted(set(self.apps.tolist()))
        p50_ms, p99_ms = 1e3 * np.quantile(self.seconds, (0.5, 0.99)) if len(self.seconds) else (np.nan, np.nan)
        by_app = {app: self._metrics(self.apps == app) for app in apps}
        times = {"predict_ms_p50": float(p50_ms), "predict_ms_p99": float(p99_ms)}
        return self._metrics(np.ones(len(self.actual), bool)) | times | {"by_app": by_app}

    def _metrics(self, rows: NDArray[np.bool_]) -> dict[str, Any]:
        actual, p90 = self.actual[rows], self.p90[rows]
        return {
            "n": len(actual),
            "rmse": float(np.sqrt(np.mean((self.mean[rows] - actual) ** 2))),
            "mae": float(np.mean(np.abs(self.median[rows] - actual))),
            "kendall_tau": kendall_tau(self.median[rows], actual),
            "p90_coverage": float(np.mean(actual <= p90)),
            "pinball_p90": pinball(p90, actual, 0.9),
        }


def kendall_tau(predicted: Floats, actual: Floats) -> float | None:
    """Return Kendall's tau-b of predictions (n,) in whole tokens, in O(n log n); None where it is undefined.

    Source: Knight, A computer method for calculating Kendall's tau with ungrouped data, JASA 61 (1966).
    """
    tau = float(kendalltau(np.round(predicted), actual).statistic)
    return None if np.isnan(tau) else tau


def pinball(predicted: Floats, actual: Floats, level: float) -> float:
    """Return the mean pinball loss of predicted quantiles (n,) at a level.

    >>> pinball(np.array([10.0, 10.0]), np.array([20.0, 0.0]), 0.9)
    5.0
    """
    miss = actual - predicted
    return float(np.mean(np.maximum(level * miss, (level - 1.0) * miss)))


def split_by_group(
    rows: Sequence[PastRequest], *, test_share: float = 0.3, seed: int = 0
) -> tuple[list[PastRequest], list[PastRequest]]:
    """Split into training and test rows; rows that share an input stay on one side, both sides come shuffled.

    A row without a group is one of its own.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)  # order alone; nothing secret
    names = sorted({row.group for row in shuffled if row.group is not None})
    draws = random.Random(seed + 1)
    test_groups = {name for name in names if draws.random() < test_share}
    test = [draws.random() < test_share if row.group is None else row.group in test_groups for row in shuffled]
    return (
        [row for row, out in zip(shuffled, test, strict=True) if not out],
        [row for row, out in zip(shuffled, test, strict=True) if out],
    )


def evaluate(
    rows: Sequence[PastRequest],
    embedder: Embedder,
    *,
    test_share: float = 0.3,
    seed: int = 0,
    model: LengthModel | None = None,
    learn: bool = True,
) -> Scored:
    """Train on a part of the rows and predict the others.

    Args:
        rows: past requests.
        embedder: of their texts.
        test_share: part that is predicted.
        seed: of the split.
        model: hyper-parameters other than the default's.
        learn: whether history and calibration learn from each test row after it was predicted, as when serving.

    Raises:
        ValueError: too few rows to train on.
    """
    train, test = split_by_group(rows, test_share=test_share, seed=seed)
    predictor = LengthPredictor(FeatureExtractor(embedder))
    predictor.serve(fit_predictor(learn_history(predictor.extractor, train), model))
    return score(predictor, test, learn=learn)


def learn_history(extractor: FeatureExtractor, rows: Iterable[PastRequest]) -> TrainingSet:
    """Pass through rows in their order; each row's features are taken before the history learns from it."""
    rows = list(rows)
    vectors = []
    for row in rows:
        vector = extractor.extract_one(row.ask)
        extractor.learn_one(row.ask.key, vector, row.output_tokens, input_tokens=row.input_tokens, cut=row.cut)
        vectors.append(vector)
    groups = [str(i) if row.group is None else row.group for i, row in enumerate(rows)]
    timed = any(row.t is not None for row in rows)
    return TrainingSet(
        np.stack(vectors) if vectors else extractor.extract([]),
        np.array([row.output_tokens for row in rows], float),
        [row.ask.app for row in rows],
        None if timed else groups,
    )


def score(predictor: LengthPredictor, rows: Iterable[PastRequest], *, learn: bool = True) -> Scored:
    """Predict rows one after the other, as the gateway would, and learn from each after its prediction."""
    scored = []
    for row in rows:
        forecast, seconds = _timed(predictor, row.ask)
        scored.append((row, forecast, seconds))
        if learn:
            predictor.learn_one(forecast, row.output_tokens, input_tokens=row.input_tokens, cut=row.cut)
    return _scored(scored)


def evaluate_online(
    rows: Sequence[PastRequest],
    embedder: Embedder,
    *,
    first_training: int = 1000,
    growth: float = 2.0,
    model: LengthModel | None = None,
) -> Scored:
    """Predict rows in time order from the first on, learning as it goes.

    Args:
        rows: past requests; without times they come in the order given.
        embedder: of their texts.
        first_training: rows before the first training; until then the history alone predicts.
        growth: a training follows whenever the rows have grown by this factor.
        model: hyper-parameters other than the default's.
    """
    predictor = LengthPredictor(FeatureExtractor(embedder))
    scored: list[tuple[PastRequest, LengthForecast, float]] = []
    next_training = max(first_training, MIN_ROWS)
    for row in sorted(rows, key=lambda row: 0.0 if row.t is None else row.t):
        forecast, seconds = _timed(predictor, row.ask)
        scored.append((row, forecast, seconds))
        predictor.learn_one(forecast, row.output_tokens, input_tokens=row.input_tokens, cut=row.cut)
        if len(scored) >= next_training:
            predictor.serve(fit_predictor(_seen(scored), model))
            next_training = int(growth * len(scored)) + 1
    return _scored(scored)


def _seen(scored: Sequence[tuple[PastRequest, LengthForecast, float]]) -> TrainingSet:
    X = np.stack([forecast.vector for _, forecast, _ in scored])
    return TrainingSet(
        X, np.array([row.output_tokens for row, _, _ in scored], float), [r.ask.app for r, _, _ in scored]
    )


def _timed(predictor: LengthPredictor, ask: PredictionInput) -> tuple[LengthForecast, float]:
    start = perf_counter()
    return predictor.predict_one(ask), perf_counter() - start


def _scored(rows: Sequence[tuple[PastRequest, LengthForecast, float]]) -> Scored:
    return Scored(
        apps=np.array([row.ask.app for row, _, _ in rows], np.str_),
        actual=np.array([row.output_tokens for row, _, _ in rows], float),
        mean=np.array([forecast.expected_tokens for _, forecast, _ in rows]),
        median=np.array([forecast.length.quantile(0.5) for _, forecast, _ in rows]),
        p90=np.array([forecast.length.quantile(0.9) for _, forecast, _ in rows]),
        expected_logs=expected_logs(
            np.array([forecast.length.logs for _, forecast, _ in rows]).reshape(len(rows), len(LEVELS))
        ),
        seconds=np.array([seconds for _, _, seconds in rows]),
    )
