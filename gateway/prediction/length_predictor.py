"""The length predictor that serves: features, trained model, mixture with history, and calibration.

A trained model may be wrong about a new application for hundreds of requests, while history alone is usually close
after fifty. So both predict every answer, and the one with the smaller pinball loss gains weight for that application.
Their quantiles are averaged level by level.

Source: Cesa-Bianchi & Lugosi, Prediction, Learning, and Games (2006), ch. 2: exponentially weighted forecasters;
Ratcliff, Group reaction time distributions (1979), for averaging quantiles.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, isnan
from statistics import NormalDist
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from gateway.prediction.answer_memory import LEVEL_NAMES, PRIOR_SIGMA, AnswerMemory, PastAnswer
from gateway.prediction.calibration import Calibration
from gateway.prediction.distribution import cut_probability, expected_tokens
from gateway.prediction.embedder import Embedder
from gateway.prediction.features import ANCHOR, FEATURE_NAMES, SIZE, FeatureExtractor, Vector
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.prediction_input import HistoryKey, PredictionInput
from gateway.scheduling.length import LEVELS, LengthQuantiles

Floats = NDArray[np.float64]

MAX_APPS = 10_000
"""Applications with a weight of their own; the least recently used is dropped first."""

MAX_LOG_ODDS = 4.0
MIN_SIGMA = 0.02
"""Smallest spread of the prediction from history, in log tokens."""

_LEVELS: Floats = np.array(LEVELS)
_SCORES: Floats = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
_ERRORS = [FEATURE_NAMES.index(f"{level}_error") for level in LEVEL_NAMES]


class QuantileModel(Protocol):
    """Predicts log tokens at `LEVELS`."""

    def predict(self, X: Vector) -> Floats:
        """Return (n, n_levels) for vectors (n, N_FEATURES)."""

    def predict_one(self, vector: Vector) -> Floats:
        """Return (n_levels,) for one vector (N_FEATURES,)."""


class AnchorModel:
    """A lognormal distribution around the anchor, as wide as past errors; it needs no training."""

    def predict(self, X: Vector) -> Floats:
        """Return log tokens (n, n_levels) at `LEVELS` for vectors (n, N_FEATURES)."""
        sigma = np.full(len(X), PRIOR_SIGMA)
        for column in _ERRORS:
            sigma = np.where(np.isnan(X[:, column]), sigma, X[:, column])
        return np.asarray(X[:, ANCHOR, None] + np.maximum(sigma, MIN_SIGMA)[:, None] * _SCORES)

    def predict_one(self, vector: Vector) -> Floats:
        """Return log tokens (n_levels,) for one vector (N_FEATURES,)."""
        known = [error for error in vector[_ERRORS].tolist() if not isnan(error)]
        sigma = max(MIN_SIGMA, known[-1]) if known else PRIOR_SIGMA
        return np.asarray(float(vector[ANCHOR]) + sigma * _SCORES)


class Mixture:
    """Weights between the trained model and history, per application.

    Args:
        known: applications that the model was trained on; they start with nearly all weight on the model.
        rate: step in log odds after an answer that only one of the two predicted right.
        memory: share of the evidence that is kept from one answer to the next.
    """

    def __init__(self, known: Iterable[str] = (), *, rate: float = 0.5, memory: float = 0.995) -> None:
        self.rate = rate
        self.memory = memory
        self._log_odds: LRUCache[str, float] = LRUCache(MAX_APPS)
        self._log_odds.update(dict.fromkeys(known, MAX_LOG_ODDS))

    def weight(self, app: str) -> float:
        """Return the model's weight (0 to 1) for an application; 0.5 for a new one."""
        return 1.0 / (1.0 + exp(-self._log_odds.get(app, 0.0)))

    def mix_one(self, app: str, model: Floats, history: Floats) -> Floats:
        """Return mixed log tokens (n_levels,) of two predictions (n_levels,)."""
        weight = self.weight(app)
        return weight * model + (1.0 - weight) * history

    def learn_one(self, app: str, model: Floats, history: Floats, tokens: float) -> None:
        """Learn from an answer's tokens and from the two predictions (n_levels,) of it."""
        errors = np.log(max(1.0, tokens)) - np.stack([model, history])
        losses = np.maximum(_LEVELS * errors, (_LEVELS - 1.0) * errors).sum(axis=1)
        total = losses.sum()
        gain = (losses[1] - losses[0]) / total if total > 0 else 0.0
        odds = self.memory * self._log_odds.get(app, 0.0) + self.rate * float(gain)
        self._log_odds[app] = min(MAX_LOG_ODDS, max(-MAX_LOG_ODDS, odds))


@dataclass(frozen=True, slots=True, eq=False)
class LengthForecast:
    """The forecast of one answer, and what learning from that answer needs later.

    Attributes:
        key: the names under which the answer will be remembered.
        prompt_bytes: UTF-8 size of the prompt.
        vector: (N_FEATURES,), stored with the request's record.
        model_logs: (n_levels,) log tokens that the trained model predicts.
        history_logs: (n_levels,) log tokens that history predicts.
        logs: (n_levels,) their mixture.
        calibrated: (n_levels,) the mixture after calibration.
        length: the calibrated distribution, cut at `max_tokens`.
    """

    key: HistoryKey
    prompt_bytes: int
    vector: Vector
    model_logs: Floats
    history_logs: Floats
    logs: Floats
    calibrated: Floats
    length: LengthQuantiles

    @property
    def expected_tokens(self) -> float:
        """Mean of the answer's tokens, cut at `max_tokens`."""
        return float(expected_tokens(self.calibrated, self.length.cap))

    @property
    def cut_probability(self) -> float | None:
        """Probability that `max_tokens` ends the answer; None if the request has no `max_tokens`."""
        cap = self.length.cap
        return None if cap is None else float(cut_probability(self.calibrated, cap))


class LengthPredictor:
    """Forecasts with the trained model, or with history alone before the first training, and learns online.

    Args:
        embedder: embeds the texts.
        memory: the past answers; the predictor learns into it.
    """

    def __init__(self, embedder: Embedder, memory: AnswerMemory | None = None) -> None:
        self.memory = AnswerMemory() if memory is None else memory
        self.extractor = FeatureExtractor(embedder, self.memory)
        self.model: QuantileModel = AnchorModel()
        self.calibration = Calibration()
        self.mixture = Mixture()
        self._anchor = AnchorModel()

    def serve(self, fitted: FittedPredictor) -> None:
        """Use another trained model from the next request on; the memory stays."""
        self.model, self.calibration = fitted.model, fitted.calibration
        self.mixture = Mixture(fitted.calibration.apps_)

    def predict_one(self, prediction_input: PredictionInput) -> LengthForecast:
        """Forecast one answer."""
        vector = self.extractor.extract_one(prediction_input)
        model_logs, history_logs = self.model.predict_one(vector), self._anchor.predict_one(vector)
        return self._forecast(prediction_input, vector, model_logs, history_logs)

    def predict(self, inputs: Sequence[PredictionInput]) -> list[LengthForecast]:
        """Forecast the answers to requests that arrived together."""
        X = self.extractor.extract(inputs)
        rows = zip(inputs, X, self.model.predict(X), self._anchor.predict(X), strict=True)
        return [self._forecast(*row) for row in rows]

    def learn_one(
        self,
        forecast: LengthForecast,
        output_tokens: float,
        *,
        sequences: int = 1,
        input_tokens: int | None = None,
        cut: bool = False,
    ) -> None:
        """Learn a complete answer: the memory, the mixture and the calibration.

        Args:
            forecast: the forecast of that answer.
            output_tokens: the engine's count, per sequence.
            sequences: answers of the request.
            input_tokens: the engine's count of prompt tokens, if it reports one.
            cut: whether `max_tokens` ended the answer.
        """
        key = forecast.key
        self.mixture.learn_one(key.app, forecast.model_logs, forecast.history_logs, output_tokens)
        self.calibration.learn_one(key.app, forecast.logs, output_tokens)
        size = float(forecast.vector[SIZE])
        self.memory.learn_one(PastAnswer(key, output_tokens, sequences, size, forecast.prompt_bytes, input_tokens, cut))

    def _forecast(
        self, prediction_input: PredictionInput, vector: Vector, model_logs: Floats, history_logs: Floats
    ) -> LengthForecast:
        key = prediction_input.key
        logs = self.mixture.mix_one(key.app, model_logs, history_logs)
        adjusted = self.calibration.adjust_one(key.app, logs)
        return LengthForecast(
            key=key,
            prompt_bytes=prediction_input.text_bytes,
            vector=vector,
            model_logs=model_logs,
            history_logs=history_logs,
            logs=logs,
            calibrated=adjusted,
            length=LengthQuantiles.of(tuple(np.exp(adjusted).tolist()), cap=prediction_input.max_tokens),
        )
