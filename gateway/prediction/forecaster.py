"""Forecasts for requests as they come: together where they come together, and never for longer than the budget.

What arrives within one turn of the event loop is predicted as one batch. An embedder that takes milliseconds a text
works in a thread, so that the loop goes on; the static one is quicker than the way to a thread and back.
"""

import asyncio
from collections.abc import Callable

from gateway.prediction.length_predictor import LengthForecast
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Forecast, Predictor

MAX_BATCH = 64
_QUICK = {"static", "off"}

Waiter = tuple[PredictionInput, "asyncio.Future[LengthForecast | None]"]


class Forecaster:
    """Asks the predictor, in batches, within a budget.

    Args:
        predictor: answers.
        budget_s: longest wait for the trained model; then history alone answers.
        on_fallback: told when it did.
    """

    def __init__(self, predictor: Predictor, budget_s: float, on_fallback: Callable[[str], None]) -> None:
        self.predictor = predictor
        self._budget_s = budget_s
        self._on_fallback = on_fallback
        self._waiting: list[Waiter] = []
        self._batches: set[asyncio.Task[None]] = set()

    @property
    def _quick(self) -> bool:
        return self.predictor.embedder in _QUICK

    async def forecast(self, ask: PredictionInput, context: int | None) -> Forecast:
        """Forecast one request."""
        if self.predictor.lengths is None:
            return self.predictor.complete(ask, context, None)
        return self.predictor.complete(ask, context, await self._learned(ask))

    async def _learned(self, ask: PredictionInput) -> LengthForecast | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[LengthForecast | None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._flush)
        self._waiting.append((ask, answer))
        if self._quick:
            return await answer  # what a late loop would wait for is not the prediction
        try:
            async with asyncio.timeout(self._budget_s):
                return await answer
        except TimeoutError:
            self._on_fallback("prediction_budget")
            return None

    def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if self._quick:
                _settle(batch, self.predictor.learn_ahead([ask for ask, _ in batch]))
            else:
                task = asyncio.create_task(self._in_thread(batch))
                self._batches.add(task)
                task.add_done_callback(self._batches.discard)

    async def _in_thread(self, batch: list[Waiter]) -> None:
        _settle(batch, await asyncio.to_thread(self.predictor.learn_ahead, [ask for ask, _ in batch]))


def _settle(batch: list[Waiter], forecasts: list[LengthForecast | None]) -> None:
    for (_, answer), forecast in zip(batch, forecasts, strict=True):
        if not answer.done():
            answer.set_result(forecast)
