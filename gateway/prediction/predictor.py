"""The predictor that serves: the trained model, else history, else a prior. It never fails a request.

It forecasts a request before it is queued and learns when the answer is complete. It makes the features of every
request, whatever forecasts it, because the next model is trained on them.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from gateway.prediction.answer_memory import AnswerMemory, PastAnswer
from gateway.prediction.embedder import Embedder
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.length_predictor import LengthForecast, LengthPredictor
from gateway.prediction.metrics import kendall_tau
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LengthQuantiles

QUALITY_WINDOW = 512
"""Predictions whose quality the statistics show."""

MAX_BATCH = 64
"""Requests that are predicted together at most."""

_FAST_EMBEDDERS = frozenset({"static", "off"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of one request: the tokens of its prompt and the length of each of its answers.

    Attributes:
        input: the request.
        prompt_tokens: counted or estimated.
        length: distribution of the length, cut at `max_tokens` and at the end of the context.
        source: "model:<version>", "history:<level>" or "prior".
        learned: the length predictor's part, with the features; None if it was not ready or failed.
    """

    input: PredictionInput
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
class Version:
    """The trained model that serves."""

    number: int
    trained_at: datetime
    rows: int


class RecentQuality:
    """Errors of the last `QUALITY_WINDOW` predictions, in tokens per sequence.

    >>> quality = RecentQuality()
    >>> for predicted, actual in ((10, 12), (20, 20), (30, 45)):
    ...     quality.learn_one(predicted, predicted * 1.3, actual)
    >>> round(quality.mae(), 2), round(quality.p90_coverage(), 2), quality.kendall_tau()
    (5.67, 0.67, 1.0)
    """

    def __init__(self) -> None:
        self.seen = 0
        self._rows: deque[tuple[float, float, float]] = deque(maxlen=QUALITY_WINDOW)

    def learn_one(self, predicted_tokens: float, predicted_p90_tokens: float, actual_tokens: float) -> None:
        """Record a prediction (median and 0.9-quantile) and the actual tokens."""
        self.seen += 1
        self._rows.append((predicted_tokens, predicted_p90_tokens, actual_tokens))

    def mae(self) -> float | None:
        """Return the mean absolute error of the median; None before the first prediction."""
        return float(np.mean([abs(p - a) for p, _, a in self._rows])) if self._rows else None

    def p90_coverage(self) -> float | None:
        """Return the share of answers that were not longer than their predicted 0.9-quantile."""
        return float(np.mean([a <= p90 for _, p90, a in self._rows])) if self._rows else None

    def kendall_tau(self) -> float | None:
        """Return Kendall's tau-b of predicted and actual lengths; None where it is undefined."""
        rows = np.asarray(self._rows, float).reshape(-1, 3)
        return kendall_tau(rows[:, 0], rows[:, 2])


class Predictor:
    """Forecasts requests and learns from answers.

    Args:
        on_fallback: called with the cause when a forecast comes from something less good than configured.

    Attributes:
        memory: the past answers.
        quality: of the last forecasts.
        version: the trained model that serves; None if history forecasts.
    """

    def __init__(self, on_fallback: Callable[[str], None] = lambda cause: None) -> None:
        self.memory = AnswerMemory()
        self.quality = RecentQuality()
        self.version: Version | None = None
        self._lengths: LengthPredictor | None = None
        self._on_fallback = on_fallback
        self._on_outcome: Callable[[float, float], None] = lambda predicted, actual: None

    @property
    def embedder(self) -> str | None:
        """Name of the embedder; None until it is loaded."""
        return self._lengths.extractor.embedder.name if self._lengths else None

    @property
    def features_version(self) -> str | None:
        """Version of the features; None while none are made."""
        return self._lengths.extractor.version if self._lengths else None

    def use_embedder(self, embedder: Embedder) -> str:
        """Make features from now on, with this embedder. Returns the version of the features."""
        self._lengths = LengthPredictor(embedder, self.memory)
        return self._lengths.extractor.version

    def serve(self, fitted: FittedPredictor | None, version: Version | None) -> None:
        """Use another trained model from the next request on, or history alone."""
        if fitted is not None and self._lengths is not None:
            self._lengths.serve(fitted)
        self.version = version

    def report_outcomes_to(self, listener: Callable[[float, float], None]) -> None:
        """Call the listener with the predicted median and the actual tokens of every answer, per sequence."""
        self._on_outcome = listener

    def forecast(self, prediction_input: PredictionInput, context: int | None) -> Forecast:
        """Forecast one request; `context` is the limit of prompt and answer together, in tokens."""
        return self.complete(prediction_input, context, self.predict_lengths([prediction_input])[0])

    def predict_lengths(self, inputs: list[PredictionInput]) -> list[LengthForecast | None]:
        """Make the features of requests that arrived together, and the length predictor's forecasts."""
        if self._lengths is None:
            return [None] * len(inputs)
        try:
            return list(self._lengths.predict(inputs) if len(inputs) > 1 else [self._lengths.predict_one(inputs[0])])
        except Exception:  # noqa: BLE001 - an error of the model must not fail the request
            _log.exception("The length model failed; the forecast comes from history")
            self._on_fallback("prediction_failed")
            return [None] * len(inputs)

    def complete(
        self, prediction_input: PredictionInput, context: int | None, learned: LengthForecast | None
    ) -> Forecast:
        """Return the forecast of the trained model, or of history if no model serves or it gave none."""
        key = prediction_input.key
        prompt = prediction_input.prompt_tokens or self.memory.prompt_tokens(key, prediction_input.text_bytes)
        room = None if context is None else max(1, context - prompt)
        cap = min((limit for limit in (prediction_input.max_tokens, room) if limit is not None), default=None)
        if learned is not None and self.version is not None:
            length = replace(learned.length, cap=cap)
            return Forecast(prediction_input, prompt, length, f"model:{self.version.number}", learned)
        prediction = self.memory.predict_one(key, cap)
        return Forecast(prediction_input, prompt, prediction.length, prediction.source, learned)

    def learn_one(
        self,
        forecast: Forecast,
        output_tokens: int,
        *,
        sequences: int = 1,
        input_tokens: int | None = None,
        cut: bool = False,
    ) -> None:
        """Learn from a complete answer; cancelled and failed requests teach nothing.

        Args:
            forecast: the forecast of the request.
            output_tokens: the engine's count, summed over all sequences.
            sequences: answers of the request.
            input_tokens: the engine's count of prompt tokens, if it reports one.
            cut: whether `max_tokens` ended the answer.
        """
        per_sequence = output_tokens / sequences
        median, p90 = forecast.length.quantile(0.5), forecast.length.quantile(0.9)
        self.quality.learn_one(median, p90, per_sequence)
        if forecast.learned is None or self._lengths is None:
            key, prompt_bytes = forecast.input.key, forecast.input.text_bytes
            answer = PastAnswer(
                key, per_sequence, sequences, prompt_bytes=prompt_bytes, input_tokens=input_tokens, cut=cut
            )
            self.memory.learn_one(answer)
            return
        self._lengths.learn_one(forecast.learned, per_sequence, sequences=sequences, input_tokens=input_tokens, cut=cut)
        self._on_outcome(median, per_sequence)


Waiter = tuple[PredictionInput, "asyncio.Future[LengthForecast | None]"]


class Forecaster:
    """Forecasts requests as they arrive, in batches and within a time budget.

    Requests that arrive in one turn of the event loop are predicted as one batch. An embedder that takes milliseconds
    per text runs in a thread, so it does not block the loop; the static one is faster than the switch to a thread.

    Args:
        predictor: makes the forecasts.
        budget_s: longest wait for the length predictor; after it history forecasts.
        on_fallback: called with the cause when the budget is spent.
    """

    def __init__(self, predictor: Predictor, budget_s: float, on_fallback: Callable[[str], None]) -> None:
        self.predictor = predictor
        self._budget_s = budget_s
        self._on_fallback = on_fallback
        self._waiting: list[Waiter] = []
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def _fast(self) -> bool:
        return self.predictor.embedder in _FAST_EMBEDDERS

    async def forecast(self, prediction_input: PredictionInput, context: int | None) -> Forecast:
        """Forecast one request; `context` is the limit of prompt and answer together, in tokens."""
        learned = None if self.predictor.embedder is None else await self._length_forecast(prediction_input)
        return self.predictor.complete(prediction_input, context, learned)

    async def _length_forecast(self, prediction_input: PredictionInput) -> LengthForecast | None:
        loop = asyncio.get_running_loop()
        result: asyncio.Future[LengthForecast | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((prediction_input, result))
        if self._fast:
            return await result  # a busy loop would use up the budget before the prediction starts
        try:
            async with asyncio.timeout(self._budget_s):
                return await result
        except TimeoutError:
            self._on_fallback("prediction_budget")
            return None

    def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if self._fast:
                _resolve(batch, self.predictor.predict_lengths([one for one, _ in batch]))
            else:
                task = asyncio.create_task(self._in_thread(batch))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    async def _in_thread(self, batch: list[Waiter]) -> None:
        _resolve(batch, await asyncio.to_thread(self.predictor.predict_lengths, [one for one, _ in batch]))


def _resolve(batch: list[Waiter], forecasts: list[LengthForecast | None]) -> None:
    for (_, result), forecast in zip(batch, forecasts, strict=True):
        if not result.done():
            result.set_result(forecast)
