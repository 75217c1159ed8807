"""The predictor that serves: the trained model, history behind it, a prior behind that. It never fails a request.

Asked before a request is queued, told when it is over. Features are made of every request, whatever answers it, since
they are what the next model is trained on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.history import Caller, HistoryPredictor
from gateway.prediction.length_predictor import LengthForecast, LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.prompt_tokens import PromptTokens
from gateway.prediction.quality import RecentQuality
from gateway.scheduling.length import LengthQuantiles

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of one request: its prompt's tokens and the length of each of its answers.

    `learned` is the trained predictor's part, with the features; None where there was none in time.
    """

    ask: PredictionInput
    prompt_tokens: int
    length: LengthQuantiles
    source: str
    learned: LengthForecast | None = None

    @property
    def p50_tokens(self) -> int:
        """Median of the answer's length."""
        return max(1, round(self.length.quantile(0.5)))

    @property
    def p90_tokens(self) -> int:
        """0.9-quantile of the answer's length."""
        return max(1, round(self.length.quantile(0.9)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: the engine's own counts, answers summed over `sequences`; `cut` at max_tokens."""

    input_tokens: int | None
    output_tokens: int
    sequences: int
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """The trained model that serves."""

    number: int
    trained_at: datetime
    rows: int


class Predictor:
    """Forecasts and learns.

    Args:
        on_fallback: told the cause whenever something less good than configured answers.
        on_outcome: told the median predicted and the tokens that came, per answer.
    """

    def __init__(
        self,
        on_fallback: Callable[[str], None] = lambda cause: None,
        on_outcome: Callable[[float, float], None] = lambda predicted, actual: None,
    ) -> None:
        self.history = HistoryPredictor()
        self.prompt_tokens = PromptTokens()
        self.quality = RecentQuality()
        self.lengths: LengthPredictor | None = None
        self.version: Version | None = None
        self.on_outcome = on_outcome
        self._on_fallback = on_fallback

    @property
    def embedder(self) -> str | None:
        """Name of what reads the texts; None until it is loaded."""
        return self.lengths.extractor.embedder.name if self.lengths else None

    @property
    def features_version(self) -> str | None:
        """Names the layout and meaning of the features; None while none are made."""
        return self.lengths.extractor.version if self.lengths else None

    def serve(self, fitted: FittedPredictor | None, version: Version | None) -> None:
        """Serve another trained model from the next request on, or history alone."""
        if fitted is not None and self.lengths is not None:
            self.lengths.serve(fitted)
        self.version = version

    def forecast(self, ask: PredictionInput, context: int | None) -> Forecast:
        """Forecast one request; `context` is what prompt and answer share at most, in tokens."""
        return self.complete(ask, context, self.learn_ahead([ask])[0])

    def learn_ahead(self, asks: list[PredictionInput]) -> list[LengthForecast | None]:
        """Make the features of requests that came together, and the trained model's forecast where one serves."""
        if self.lengths is None:
            return [None] * len(asks)
        try:
            return list(self.lengths.predict(asks) if len(asks) > 1 else [self.lengths.predict_one(asks[0])])
        except Exception:  # noqa: BLE001 - whatever a model does with a text, its request is answered
            _log.exception("The length model failed; history answers")
            self._on_fallback("prediction_failed")
            return [None] * len(asks)

    def complete(self, ask: PredictionInput, context: int | None, learned: LengthForecast | None) -> Forecast:
        """Make a forecast of what the trained model says, or of history where it says nothing."""
        prompt = ask.prompt_tokens or self.prompt_tokens.estimate(ask.app, ask.model, ask.text_bytes)
        room = None if context is None else max(1, context - prompt)
        cap = min((limit for limit in (ask.max_tokens, room) if limit is not None), default=None)
        if learned is not None and self.version is not None:
            return Forecast(ask, prompt, replace(learned.length, cap=cap), f"model:{self.version.number}", learned)
        prediction = self.history.predict_one(_caller(ask), cap)
        return Forecast(ask, prompt, prediction.length, prediction.source, learned)

    def learn_one(self, forecast: Forecast, outcome: Outcome) -> None:
        """Learn from an answer that came to its end; what its client or a failure cut short teaches nothing."""
        ask = forecast.ask
        if outcome.input_tokens is not None:
            self.prompt_tokens.learn_one(ask.app, ask.model, ask.text_bytes, outcome.input_tokens)
        per_answer = outcome.output_tokens / outcome.sequences
        self.history.learn_one(_caller(ask), round(per_answer), count=outcome.sequences)
        self.quality.learn_one(forecast.length.quantile(0.5), forecast.length.quantile(0.9), per_answer)
        if forecast.learned is not None and self.lengths is not None:
            self.lengths.learn_one(forecast.learned, per_answer, input_tokens=outcome.input_tokens, cut=outcome.cut)
            self.on_outcome(forecast.length.quantile(0.5), per_answer)


def _caller(ask: PredictionInput) -> Caller:
    return Caller(ask.app, ask.model, ask.user)
