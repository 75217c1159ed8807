"""How long a static batch takes: from a step-time model, and corrected by what batches really took."""

from dataclasses import dataclass, field
from math import log
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.step_time import StepTimePrior

Floats = NDArray[np.float64]


class BatchTime(Protocol):
    """Says how long a padded batch takes."""

    def __call__(self, size: int, prompt_tokens: int, output_tokens: int) -> float:
        """Return seconds, from the batch's size, its longest prompt and its longest answer in tokens."""
        ...


@dataclass(frozen=True, slots=True)
class StepSumTime:
    """Seconds of a padded batch, as the sum of its steps; the first one is the prefill and gives the first token.

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
    """Learns from what batches took: the nearest ones' seconds over the prior's, times the prior's.

    Nearness is Euclidean in the logarithms of (size, prompt tokens, output tokens), so that a factor counts the same
    everywhere. The prior is a neighbour itself, `PRIOR_DISTANCE` away from everything: before the first batch, and far
    from all batches, it speaks alone. Only batches that were mispredicted are kept, the newest `capacity` of them: the
    paper re-trains on those every two minutes; neighbours need no training, so here they count at once.

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
    """A factor of e^0.5 = 1.65 in one of the three."""

    MIN_ERROR_S, MIN_ERROR_SHARE = 2.0, 0.2
    """A prediction that is off by more than both is an error to learn from."""

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
        """Learn what a batch took, if that was not expected. `output_tokens` is the longest answer that came."""
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
