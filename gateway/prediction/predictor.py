"""The predictor that serves: asked before a request is queued, told when it is over. It never fails a request."""

from dataclasses import dataclass

from gateway.prediction.history import Caller, HistoryPredictor
from gateway.prediction.prompt_tokens import PromptTokens
from gateway.prediction.quality import RecentQuality
from gateway.scheduling.length import LengthQuantiles


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of one request: its prompt's tokens and the length of each of its answers."""

    prompt_tokens: int
    length: LengthQuantiles
    source: str

    @property
    def p50_tokens(self) -> int:
        """Median of the answer's length."""
        return max(1, round(self.length.at(0.5)))

    @property
    def p90_tokens(self) -> int:
        """0.9-quantile of the answer's length."""
        return max(1, round(self.length.at(0.9)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: the engine's own counts, answers summed over `sequences`."""

    text_bytes: int
    input_tokens: int | None
    output_tokens: int
    sequences: int


class Predictor:
    """Prompt sizes and answer lengths from what was seen before."""

    def __init__(self) -> None:
        self.history = HistoryPredictor()
        self.prompt_tokens = PromptTokens()
        self.quality = RecentQuality()

    def forecast(
        self, caller: Caller, *, text_bytes: int, prompt_tokens: int | None, max_tokens: int | None, context: int | None
    ) -> Forecast:
        """Forecast a request.

        Args:
            caller: who asks for what.
            text_bytes: UTF-8 size of the prompt's text.
            prompt_tokens: exact count, where the prompt came as token ids.
            max_tokens: the request's own limit.
            context: the model's; prompt and answer share it.
        """
        prompt = prompt_tokens or self.prompt_tokens.estimate(caller.app, caller.model, text_bytes)
        room = None if context is None else max(1, context - prompt)
        cap = min((limit for limit in (max_tokens, room) if limit is not None), default=None)
        prediction = self.history.predict_one(caller, cap)
        return Forecast(prompt, prediction.length, prediction.source)

    def learn_one(self, caller: Caller, forecast: Forecast, outcome: Outcome) -> None:
        """Learn from an answer that came to its end; what its client or a failure cut short teaches nothing."""
        if outcome.input_tokens is not None:
            self.prompt_tokens.learn_one(caller.app, caller.model, outcome.text_bytes, outcome.input_tokens)
        tokens = round(outcome.output_tokens / outcome.sequences)
        self.history.learn_one(caller, tokens, count=outcome.sequences)
        self.quality.learn_one(forecast.length.at(0.5), forecast.length.at(0.9), tokens)
