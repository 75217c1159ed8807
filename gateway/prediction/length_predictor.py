"""The trained predictor as it serves: features, model, mixture and calibration in one, learning from every answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.anchor_model import AnchorModel
from gateway.prediction.calibration import Calibration
from gateway.prediction.distribution import cut_probability, expected_tokens
from gateway.prediction.features import FeatureExtractor, Vector
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.mixture import Mixture
from gateway.prediction.prediction_input import HistoryKey, PredictionInput
from gateway.scheduling.length import LengthQuantiles

Floats = NDArray[np.float64]


class QuantileModel(Protocol):
    """Predicts log tokens at `LEVELS`."""

    def predict(self, X: Vector) -> Floats:
        """Return (n, n_levels) for vectors (n, N_FEATURES)."""

    def predict_one(self, vector: Vector) -> Floats:
        """Return (n_levels,) for one vector (N_FEATURES,)."""


@dataclass(frozen=True, slots=True, eq=False)
class LengthForecast:
    """What is expected of one answer, and all that learning from it will need: keep it until the answer is there.

    `vector` (N_FEATURES,) goes to the database with the outcome. `model_logs` and `history_logs` (n_levels,) are what
    each said, `logs` (n_levels,) their mixture, `calibrated` (n_levels,) what is believed of it.
    """

    key: HistoryKey
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
        """Probability that `max_tokens` ends the answer; None where the request sets none."""
        cap = self.length.cap
        return None if cap is None else float(cut_probability(self.calibrated, cap))


class LengthPredictor:
    """Forecasts from the model that serves now, over an online history.

    Args:
        extractor: the features and their history.
    """

    def __init__(self, extractor: FeatureExtractor) -> None:
        self.extractor = extractor
        self.model: QuantileModel = AnchorModel()
        self.calibration = Calibration()
        self.mixture = Mixture()
        self._anchor = AnchorModel()

    def serve(self, fitted: FittedPredictor) -> None:
        """Serve another model from the next request on; the history stays."""
        self.model, self.calibration = fitted.model, fitted.calibration
        self.mixture = Mixture(fitted.calibration.apps_)

    def predict_one(self, ask: PredictionInput) -> LengthForecast:
        """Forecast one answer."""
        vector = self.extractor.extract_one(ask)
        return self._forecast(ask, vector, self.model.predict_one(vector), self._anchor.predict_one(vector))

    def predict(self, asks: Sequence[PredictionInput]) -> list[LengthForecast]:
        """Forecast the answers to requests that wait together."""
        X = self.extractor.extract(asks)
        rows = zip(asks, X, self.model.predict(X), self._anchor.predict(X), strict=True)
        return [self._forecast(*row) for row in rows]

    def learn_one(
        self, forecast: LengthForecast, output_tokens: float, *, input_tokens: int | None = None, cut: bool = False
    ) -> None:
        """Learn from an answer that came to its end.

        Args:
            forecast: what was forecast of it.
            output_tokens: the engine's count, per sequence.
            input_tokens: the engine's count of the prompt, if it told.
            cut: whether `max_tokens` ended the answer.
        """
        key = forecast.key
        self.mixture.learn_one(key.app, forecast.model_logs, forecast.history_logs, output_tokens)
        self.calibration.learn_one(key.app, forecast.logs, output_tokens)
        self.extractor.learn_one(key, forecast.vector, output_tokens, input_tokens=input_tokens, cut=cut)

    def _forecast(
        self, ask: PredictionInput, vector: Vector, model_logs: Floats, history_logs: Floats
    ) -> LengthForecast:
        key = ask.key
        logs = self.mixture.mix_one(key.app, model_logs, history_logs)
        adjusted = self.calibration.adjust_one(key.app, logs)
        return LengthForecast(
            key=key,
            vector=vector,
            model_logs=model_logs,
            history_logs=history_logs,
            logs=logs,
            calibrated=adjusted,
            length=LengthQuantiles.of(tuple(np.exp(adjusted).tolist()), cap=ask.max_tokens),
        )
