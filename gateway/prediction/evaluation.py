"""Evaluation of predictions on past requests: the metrics, the split, and two ways of measuring.

`evaluate` trains on one part and serves the other part as the gateway does: each answer is predicted before it is
learned. `evaluate_online` does so from the first row on, in time order, with trainings in between.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.answer_memory import PastAnswer
from gateway.prediction.distribution import expected_logs
from gateway.prediction.embedder import Embedder
from gateway.prediction.features import SIZE, FeatureExtractor
from gateway.prediction.fitting import MIN_ROWS, TrainingSet, fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthForecast, LengthPredictor
from gateway.prediction.metrics import kendall_tau, pinball
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PastRequest:
    """A request with its outcome; None is unknown.

    Attributes:
        input: the request.
        output_tokens: of its answer.
        input_tokens: the engine's count of prompt tokens.
        cut: whether `max_tokens` ended the answer.
        t: arrival in seconds.
        group: rows of one group share an input.
    """

    input: PredictionInput
    output_tokens: int
    input_tokens: int | None = None
    cut: bool = False
    t: float | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Predictions and actual lengths, (n,) each, in tokens.

    `expected_logs` is the mean of log tokens; `seconds` is the time of each prediction.
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
            "kendall_tau": kendall_tau(np.round(self.median[rows]), actual),
            "p90_coverage": float(np.mean(actual <= p90)),
            "pinball_p90": pinball(p90, actual, 0.9),
        }


def split_by_group(
    rows: Sequence[PastRequest], *, test_share: float = 0.3, seed: int = 0
) -> tuple[list[PastRequest], list[PastRequest]]:
    """Split into training and test rows, both shuffled; rows that share an input stay together.

    A row without a group is its own group.
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)  # an order, not a secret
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
    """Train on a part of the rows and predict the other rows.

    Args:
        rows: past requests.
        embedder: embeds their texts.
        test_share: share of the rows that is predicted.
        seed: of the split.
        model: hyper-parameters other than the default's.
        learn: whether the predictor learns each test row after its prediction, as when serving.

    Raises:
        ValueError: too few rows to train on.
    """
    train, test = split_by_group(rows, test_share=test_share, seed=seed)
    predictor = LengthPredictor(embedder)
    predictor.serve(fit_predictor(learn_history(predictor.extractor, train), model))
    return score(predictor, test, learn=learn)


def learn_history(extractor: FeatureExtractor, rows: Iterable[PastRequest]) -> TrainingSet:
    """Return the training set of rows in their order; the memory learns each row after its features are made."""
    rows = list(rows)
    vectors = []
    for row in rows:
        vector = extractor.extract_one(row.input)
        extractor.memory.learn_one(past_answer(row, float(vector[SIZE])))
        vectors.append(vector)
    groups = [str(i) if row.group is None else row.group for i, row in enumerate(rows)]
    timed = any(row.t is not None for row in rows)
    return TrainingSet(
        np.stack(vectors) if vectors else extractor.extract([]),
        np.array([row.output_tokens for row in rows], float),
        [row.input.app for row in rows],
        None if timed else groups,
    )


def past_answer(row: PastRequest, size: float) -> PastAnswer:
    """Return the answer of a past request as the memory learns it; `size` is the feature."""
    return PastAnswer(
        key=row.input.key,
        tokens=row.output_tokens,
        size=size,
        prompt_bytes=row.input.text_bytes,
        input_tokens=row.input_tokens,
        cut=row.cut,
    )


def score(predictor: LengthPredictor, rows: Iterable[PastRequest], *, learn: bool = True) -> Scored:
    """Predict rows one after the other as the gateway does, and learn each row after its prediction."""
    scored = []
    for row in rows:
        forecast, seconds = _timed(predictor, row.input)
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
    """Predict rows in time order, from the first row on, and learn each row after its prediction.

    Args:
        rows: past requests; rows without times keep their order.
        embedder: embeds their texts.
        first_training: rows before the first training; until then history alone predicts.
        growth: the predictor is trained again when the number of rows has grown by this factor.
        model: hyper-parameters other than the default's.
    """
    predictor = LengthPredictor(embedder)
    scored: list[tuple[PastRequest, LengthForecast, float]] = []
    next_training = max(first_training, MIN_ROWS)
    for row in sorted(rows, key=lambda row: 0.0 if row.t is None else row.t):
        forecast, seconds = _timed(predictor, row.input)
        scored.append((row, forecast, seconds))
        predictor.learn_one(forecast, row.output_tokens, input_tokens=row.input_tokens, cut=row.cut)
        if len(scored) >= next_training:
            predictor.serve(fit_predictor(_seen(scored), model))
            next_training = int(growth * len(scored)) + 1
    return _scored(scored)


def _seen(scored: Sequence[tuple[PastRequest, LengthForecast, float]]) -> TrainingSet:
    X = np.stack([forecast.vector for _, forecast, _ in scored])
    return TrainingSet(
        X, np.array([row.output_tokens for row, _, _ in scored], float), [r.input.app for r, _, _ in scored]
    )


def _timed(predictor: LengthPredictor, prediction_input: PredictionInput) -> tuple[LengthForecast, float]:
    start = perf_counter()
    return predictor.predict_one(prediction_input), perf_counter() - start


def _scored(rows: Sequence[tuple[PastRequest, LengthForecast, float]]) -> Scored:
    return Scored(
        apps=np.array([row.input.app for row, _, _ in rows], np.str_),
        actual=np.array([row.output_tokens for row, _, _ in rows], float),
        mean=np.array([forecast.expected_tokens for _, forecast, _ in rows]),
        median=np.array([forecast.length.quantile(0.5) for _, forecast, _ in rows]),
        p90=np.array([forecast.length.quantile(0.9) for _, forecast, _ in rows]),
        expected_logs=expected_logs(
            np.array([forecast.length.logs for _, forecast, _ in rows]).reshape(len(rows), len(LEVELS))
        ),
        seconds=np.array([seconds for _, _, seconds in rows]),
    )
