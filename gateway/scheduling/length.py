"""The predicted length of an answer in tokens, as a probability distribution."""

from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Levels of the quantiles that predictors return."""

_NORMAL = NormalDist()
_Z = tuple(_NORMAL.inv_cdf(level) for level in LEVELS)
_MIN_LOG_GAP = 1e-6
_SURVIVAL_FLOOR = 1e-9
_LEAST_TOKENS = 0.5
_FAR = 50.0
"""Log tokens, beyond every length."""

_SCORES: Floats = np.linspace(-8.0, 8.0, 16_001)
_BEYOND: Floats = np.array([1.0, *(_NORMAL.cdf(-score) for score in _SCORES[1:-1]), 0.0])
"""Probability beyond each normal score; linear between two scores, with a relative error of 1e-5."""

_MEAN_WEIGHTS = (0.175, 0.2, 0.25, 0.2, 0.1, 0.075)
"""Weight of each level in the mean: half of the probability up to each neighbour, and all of it beyond the ends."""


@dataclass(frozen=True, slots=True)
class LengthQuantiles:
    """Distribution of an answer's length in tokens.

    It has quantiles at `LEVELS`. Between and beyond them the logarithm of the length is linear in the normal score, so
    the tails are lognormal.

    Attributes:
        logs: logarithms of the quantiles.
        cap: the request's `max_tokens`, at which the engine ends the answer; None if there is no limit.

    >>> length = LengthQuantiles.of((10, 20, 40, 80, 150, 200), cap=120)
    >>> round(length.quantile(0.5)), round(length.quantile(0.95))
    (40, 120)
    >>> round(length.remaining(0, 0.5)), round(length.remaining(100, 0.5))
    (40, 20)
    """

    logs: tuple[float, ...]
    cap: int | None = None

    @classmethod
    def of(cls, tokens: tuple[float, ...], *, cap: int | None = None) -> "LengthQuantiles":
        """Return the distribution with these quantiles at `LEVELS`, raised where needed: at least 1, and increasing."""
        if len(tokens) != len(LEVELS):
            raise ValueError(f"tokens: {len(tokens)} quantiles given, {len(LEVELS)} expected")
        logs: list[float] = []
        for count in tokens:
            value = log(max(1.0, count))
            logs.append(max(value, logs[-1] + _MIN_LOG_GAP) if logs else value)
        return cls(tuple(logs), cap)

    def quantile(self, level: float) -> float:
        """Return the `level`-quantile (0 < level < 1), at most `cap`."""
        return self._capped(self._tokens(_NORMAL.inv_cdf(level)))

    def mean(self) -> float:
        """Return the mean, as far as the levels show it: lengths beyond the last quantile count as that quantile."""
        return sum(w * self._capped(exp(value)) for w, value in zip(_MEAN_WEIGHTS, self.logs, strict=True))

    def still_running(self, generated: float, ahead: Floats) -> Floats:
        """Return the probability that an answer with `generated` tokens gets more than `ahead` further tokens.

        Args:
            generated: tokens that the answer has.
            ahead: further tokens, (n,), increasing.

        Returns:
            (n,), 1 where `ahead` is 0, and 0 from `cap` on.
        """
        total = generated + ahead
        longer = np.interp(self._scores(np.log(np.maximum(total, _LEAST_TOKENS))), _SCORES, _BEYOND)
        now = _NORMAL.cdf(-self._score(log(generated))) if generated else 1.0
        # Far beyond the prediction, the best guess is about as many tokens again.
        running = np.asarray(longer / now) if now > _SURVIVAL_FLOOR else (generated / total) ** 2
        if self.cap is not None:
            running[total >= self.cap] = 0.0
        running[ahead <= 0.0] = 1.0
        return running

    def scaled(self, factor: float) -> "LengthQuantiles":
        """Return the distribution of answers that are `factor` times as long, with the same cap."""
        shift = log(factor)
        return LengthQuantiles(tuple(value + shift for value in self.logs), self.cap)

    def remaining(self, generated: int, level: float) -> float:
        """Return the `level`-quantile of the further tokens of an answer that has `generated` tokens and is not over.

        It is at least one token, unless the cap is reached.
        """
        if self.cap is not None and generated >= self.cap:
            return 0.0
        return max(1.0, self._capped(self._total(generated, level)) - generated)

    def _total(self, generated: int, level: float) -> float:
        longer = 1.0 - _NORMAL.cdf(self._score(log(generated))) if generated > 0 else 1.0
        if longer < _SURVIVAL_FLOOR:  # far beyond the prediction
            return 2.0 * generated
        return self._tokens(_NORMAL.inv_cdf(1.0 - longer * (1.0 - level)))

    def _capped(self, tokens: float) -> float:
        return tokens if self.cap is None else min(tokens, float(self.cap))

    def _tokens(self, z: float) -> float:
        i = _segment(_Z, z)
        slope = (self.logs[i + 1] - self.logs[i]) / (_Z[i + 1] - _Z[i])
        return exp(min(self.logs[i] + slope * (z - _Z[i]), 40.0))

    def _scores(self, log_tokens: Floats) -> Floats:
        """Return the normal scores of log tokens, (n,) each. The outer segments reach to infinity."""
        logs = self.logs
        below = (_Z[1] - _Z[0]) / (logs[1] - logs[0]) * _FAR
        above = (_Z[-1] - _Z[-2]) / (logs[-1] - logs[-2]) * _FAR
        knots = (logs[0] - _FAR, *logs, logs[-1] + _FAR)
        return np.interp(log_tokens, knots, (_Z[0] - below, *_Z, _Z[-1] + above))

    def _score(self, log_tokens: float) -> float:
        i = _segment(self.logs, log_tokens)
        slope = (_Z[i + 1] - _Z[i]) / (self.logs[i + 1] - self.logs[i])
        return _Z[i] + slope * (log_tokens - self.logs[i])


def _segment(knots: tuple[float, ...], x: float) -> int:
    """Return the index of the segment of `knots` that contains `x`. The outer segments reach to infinity."""
    for i in range(1, len(knots) - 1):
        if x < knots[i]:
            return i - 1
    return len(knots) - 2
