"""How long a static batch takes: a sum of step times, corrected by how long similar batches took."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.messages import Request
from gateway.scheduling.step_time import StepTimePrior

Floats = NDArray[np.float64]


class BatchTime(Protocol):
    """Predicts how long a padded batch takes."""

    def __call__(self, size: int, prompt_tokens: int, output_tokens: int) -> float:
        """Return seconds for a batch of `size` rows, with its longest prompt and longest answer in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class StepSumTime:
    """Seconds of a padded batch as the sum of its steps. The first step is the prefill and gives the first token.

    >>> step = StepTimePrior(base_s=1.0, per_sequence_s=0.1, per_kv_token_s=0.01, per_prompt_token_s=0.001)
    >>> seconds = StepSumTime(step)(size=2, prompt_tokens=50, output_tokens=3)
    >>> round(seconds, 6), round(sum(1.0 + 0.1 * 2 + 0.01 * 2 * (50 + g) for g in (1, 2, 3)) + 0.001 * 2 * 50, 6)
    (6.82, 6.82)
    """

    step: StepTimePrior = field(default_factory=StepTimePrior)

    def __call__(self, size: int, prompt_tokens: int, output_tokens: int) -> float:
        """Return the batch's seconds."""
        step = self.step
        kv_tokens = size * (output_tokens * prompt_tokens + output_tokens * (output_tokens + 1) / 2)
        decoding_s = output_tokens * (step.base_s + step.per_sequence_s * size) + step.per_kv_token_s * kv_tokens
        return decoding_s + step.per_prompt_token_s * size * prompt_tokens


@dataclass(slots=True)
class KnnBatchTime:
    """The prior's seconds, times the ratio of real to predicted time of the nearest batches.

    Distance is Euclidean in the logarithms of size, prompt tokens and output tokens, so a factor counts the same
    everywhere. The prior is a neighbour at distance `PRIOR_DISTANCE` from every batch: it decides before the first
    batch and far from all batches. Only the newest `capacity` batches that were mispredicted are kept. The paper trains
    on those every two minutes; neighbours need no training, so here a batch counts at once.

    >>> estimate = KnnBatchTime(prior=lambda size, prompt_tokens, output_tokens: 0.05 * output_tokens)
    >>> estimate(8, 100, 200)
    10.0
    >>> for _ in range(5):
    ...     estimate.learn_one(8, 100, 200, 30.0)
    >>> 29.0 < estimate(8, 100, 200) < 30.0
    True
    >>> round(estimate(1, 1000, 3), 1)
    0.2

    Source: arXiv 2406.04785, section on serving time estimation (KNN on these three; errors > 2 s and > 20 %).
    """

    prior: BatchTime
    capacity: int = 1024
    _points: Floats = field(init=False)
    _ratios: Floats = field(init=False)
    _learned: int = 0

    NEIGHBOURS = 5
    PRIOR_DISTANCE = 0.5
    """A factor of e^0.5 = 1.65 in one of the three dimensions."""

    MIN_ERROR_S, MIN_ERROR_SHARE = 2.0, 0.2
    """A batch is kept if its prediction was wrong by more than both."""

    def __post_init__(self) -> None:
        self._points = np.empty((self.capacity, 3))
        self._ratios = np.empty(self.capacity)

    def __len__(self) -> int:
        return min(self._learned, self.capacity)

    def __call__(self, size: int, prompt_tokens: int, output_tokens: int) -> float:
        """Return the batch's seconds."""
        seconds = self.prior(size, prompt_tokens, output_tokens)
        return seconds * self._ratio(_point(size, prompt_tokens, output_tokens)) if self._learned else seconds

    def learn_one(self, size: int, prompt_tokens: int, output_tokens: int, seconds: float) -> None:
        """Learn from a batch that took `seconds`, if it was mispredicted. `output_tokens` is its longest answer."""
        error = abs(self(size, prompt_tokens, output_tokens) - seconds)
        if error <= self.MIN_ERROR_S or error <= self.MIN_ERROR_SHARE * seconds:
            return
        slot = self._learned % self.capacity
        self._points[slot] = _point(size, prompt_tokens, output_tokens)
        self._ratios[slot] = seconds / self.prior(size, prompt_tokens, output_tokens)
        self._learned += 1

    def _ratio(self, point: Floats) -> float:
        distances = np.sqrt(((self._points[: len(self)] - point) ** 2).sum(axis=1))
        nearest = np.argsort(distances)[: self.NEIGHBOURS]
        weights = 1.0 / (distances[nearest] + 1e-3)
        prior_weight = 1.0 / self.PRIOR_DISTANCE
        return float((weights @ self._ratios[nearest] + prior_weight) / (weights.sum() + prior_weight))


def _point(size: int, prompt_tokens: int, output_tokens: int) -> Floats:
    return np.array([log(max(1, count)) for count in (size, prompt_tokens, output_tokens)])


@dataclass(slots=True)
class BatchTimer:
    """Times the batch on a static engine, from its dispatch to the end of its last member, and learns from it."""

    time: KnnBatchTime = field(default_factory=lambda: KnnBatchTime(StepSumTime()))
    _dispatched_s: float = 0.0
    _size: int = 0
    _prompt_tokens: int = 0
    _output_tokens: int = 0
    _complete: bool = True

    def begin(self, members: Sequence[Request], now: float) -> None:
        """Start timing a batch that is dispatched."""
        self._dispatched_s, self._output_tokens, self._complete = now, 0, True
        self._size = sum(request.sequences for request in members)
        self._prompt_tokens = max(request.prompt_tokens for request in members)

    def finish_one(self, output_tokens: int | None) -> None:
        """Note a member's end: its tokens per sequence, or None if the answer did not end by itself."""
        self._output_tokens = max(self._output_tokens, output_tokens or 0)
        self._complete &= output_tokens is not None

    def end(self, now: float) -> None:
        """Note the end of the last member. Nothing is learned from a batch that was cut short."""
        if self._size and self._output_tokens and self._complete:
            self.time.learn_one(self._size, self._prompt_tokens, self._output_tokens, now - self._dispatched_s)
        self._size = 0
