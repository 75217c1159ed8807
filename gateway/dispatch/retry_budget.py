"""How many further attempts there may be, so that a fleet that fails is not asked all the more for it."""

from gateway.dispatch.trip import Trip
from gateway.errors import BackendError, BackendRefused

MAX_ATTEMPTS = 3
"""Backends that one request may fail on."""

RETRY_SHARE = 0.2
"""Further attempts for each request, in the long run."""

BURST = 100.0
"""Further attempts that are saved up, at most and at the start: what one lost engine costs at once."""

REFILL_PER_S = 1.0
"""Further attempts that come with time alone: where there are few requests, a failed one may go elsewhere."""


class RetryBudget:
    """A purse that requests and time fill, and further attempts empty. Times in monotonic seconds."""

    def __init__(self) -> None:
        self._saved = BURST
        self._seen_s: float | None = None

    def note_request(self, now: float) -> None:
        """Count a request, whatever will come of it."""
        self._refill(now, RETRY_SHARE)

    def allows(self, error: BackendError, trip: Trip, now: float) -> bool:
        """Count a failed attempt, and tell whether another backend may do better and may be asked.

        None may for what an engine has against the request itself.
        """
        trip.attempts += 1
        refused = isinstance(error, BackendRefused) and error.status < 500
        return not refused and trip.attempts < MAX_ATTEMPTS and self.take(now)

    def take(self, now: float) -> bool:
        """Take one further attempt; False where there is none left.

        >>> budget = RetryBudget()
        >>> [budget.take(0.0) for _ in range(200)].count(True)
        100
        """
        self._refill(now, 0.0)
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True

    def _refill(self, now: float, more: float) -> None:
        elapsed_s = 0.0 if self._seen_s is None else max(0.0, now - self._seen_s)
        self._seen_s = now if self._seen_s is None else max(now, self._seen_s)
        self._saved = min(BURST, self._saved + more + REFILL_PER_S * elapsed_s)
