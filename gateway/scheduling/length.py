"""The predicted length of an answer, as a distribution."""

from dataclasses import dataclass
from math import exp, log
from statistics import NormalDist

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""The levels at which predictors give quantiles."""

_NORMAL = NormalDist()
_Z = tuple(_NORMAL.inv_cdf(level) for level in LEVELS)
_MIN_LOG_GAP = 1e-6
_SURVIVAL_FLOOR = 1e-9


@dataclass(frozen=True, slots=True)
class LengthQuantiles:
    """Distribution of an answer's length in tokens.

    Quantiles at `LEVELS`; between and beyond them log length is linear in the normal score: the tails are lognormal.
    `cap` is the request's `max_tokens`, where the engine cuts whatever was predicted.

    >>> length = LengthQuantiles.of((10, 20, 40, 80, 150, 200), cap=120)
    >>> round(length.at(0.5)), round(length.at(0.95))
    (40, 120)
    >>> round(length.remaining(0, 0.5)), round(length.remaining(100, 0.5))
    (40, 20)
    """

    logs: tuple[float, ...]
    cap: int | None = None

    @classmethod
    def of(cls, tokens: tuple[float, ...], *, cap: int | None = None) -> "LengthQuantiles":
        """Build from token counts at `LEVELS`; what is not increasing is made so, what is under one token is one."""
        if len(tokens) != len(LEVELS):
            raise ValueError(f"{len(tokens)} quantiles given, {len(LEVELS)} expected")
        logs: list[float] = []
        for count in tokens:
            value = log(max(1.0, count))
            logs.append(max(value, logs[-1] + _MIN_LOG_GAP) if logs else value)
        return cls(tuple(logs), cap)

    def at(self, level: float) -> float:
        """Return the `level`-quantile (0 < level < 1), at most `cap`."""
        return self._capped(self._tokens(_NORMAL.inv_cdf(level)))

    def remaining(self, generated: int, level: float) -> float:
        """Return the `level`-quantile of what is still to come of an answer that has `generated` tokens and goes on.

        At least one token, as long as the cap allows it.
        """
        if self.cap is not None and generated >= self.cap:
            return 0.0
        return max(1.0, self._capped(self._total(generated, level)) - generated)

    def _total(self, generated: int, level: float) -> float:
        longer = 1.0 - _NORMAL.cdf(self._score(log(generated))) if generated > 0 else 1.0
        if longer < _SURVIVAL_FLOOR:  # far beyond everything predicted: as much again is all that can be said
            return 2.0 * generated
        return self._tokens(_NORMAL.inv_cdf(1.0 - longer * (1.0 - level)))

    def _capped(self, tokens: float) -> float:
        return tokens if self.cap is None else min(tokens, float(self.cap))

    def _tokens(self, z: float) -> float:
        i = _segment(_Z, z)
        slope = (self.logs[i + 1] - self.logs[i]) / (_Z[i + 1] - _Z[i])
        return exp(min(self.logs[i] + slope * (z - _Z[i]), 40.0))

    def _score(self, log_tokens: float) -> float:
        i = _segment(self.logs, log_tokens)
        slope = (_Z[i + 1] - _Z[i]) / (self.logs[i + 1] - self.logs[i])
        return _Z[i] + slope * (log_tokens - self.logs[i])


def _segment(knots: tuple[float, ...], x: float) -> int:
    """Index of the segment of `knots` in which `x` lies; the outer ones reach to infinity."""
    for i in range(1, len(knots) - 1):
        if x < knots[i]:
            return i - 1
    return len(knots) - 2
