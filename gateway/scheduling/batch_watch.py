"""Watches a static engine's batches, and learns how long they take."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.scheduling.batch_time import KnnBatchTime, StepSumTime
from gateway.scheduling.messages import Request


@dataclass(slots=True)
class BatchWatch:
    """The batch that an engine has, from its dispatch to the end of its last member."""

    time: KnnBatchTime = field(default_factory=lambda: KnnBatchTime(StepSumTime()))
    _sent_s: float = 0.0
    _size: int = 0
    _prompt_tokens: int = 0
    _output_tokens: int = 0
    _whole: bool = True

    def begin(self, members: Sequence[Request], now: float) -> None:
        """A batch is sent."""
        self._sent_s, self._output_tokens, self._whole = now, 0, True
        self._size = sum(request.sequences for request in members)
        self._prompt_tokens = max(request.prompt_tokens for request in members)

    def finish_one(self, output_tokens: int | None) -> None:
        """A member is through, with so many tokens a sequence; None if it did not come to its own end."""
        self._output_tokens = max(self._output_tokens, output_tokens or 0)
        self._whole &= output_tokens is not None

    def end(self, now: float) -> None:
        """The last member is through; a batch that was cut short teaches nothing."""
        if self._size and self._output_tokens and self._whole:
            self.time.learn_one(self._size, self._prompt_tokens, self._output_tokens, now - self._sent_s)
        self._size = 0
