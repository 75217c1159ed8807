"""How fast the queue drains: what makes a Retry-After truthful."""

from dataclasses import dataclass
from math import exp

WINDOW_S = 30.0
MAX_RETRY_AFTER_S = 120.0


@dataclass(slots=True)
class DispatchRate:
    """Dispatches per second, exponentially weighted over `WINDOW_S`.

    >>> rate = DispatchRate()
    >>> for second in range(300):
    ...     rate.count(float(second))
    >>> round(rate.time_for_s(20, 300.0))
    20
    """

    _weight: float = 0.0
    _at_s: float = 0.0

    def count(self, now: float) -> None:
        """Note one dispatch."""
        self._weight = self._decayed(now) + 1.0
        self._at_s = now

    def time_for_s(self, requests: int, now: float) -> float:
        """Estimate how long so many requests take to leave the queue, between one second and `MAX_RETRY_AFTER_S`."""
        per_s = self._decayed(now) / WINDOW_S
        return min(MAX_RETRY_AFTER_S, max(1.0, requests / per_s)) if per_s > 0 else MAX_RETRY_AFTER_S

    def _decayed(self, now: float) -> float:
        return self._weight * exp((self._at_s - now) / WINDOW_S)
