"""Limits retries, so that failing backends do not get even more requests, and decides who is at fault for a failure.

If several engines fail a request alike, the request is at fault. If another engine answers it, the first engine is at
fault.
"""

from gateway.dispatch.context import RequestContext
from gateway.errors import BackendError, BackendRefused
from gateway.fleet.breaker import Fingerprint
from gateway.fleet.pool import BackendPool, is_answer, is_engine_failure

MAX_ATTEMPTS = 3
"""Largest number of attempts for one request."""

RETRY_SHARE = 0.2
"""Retries that each request adds to the budget."""

BURST = 100.0
"""Largest budget, and the budget at the start: the retries that the loss of one engine needs at once."""

REFILL_PER_S = 1.0
"""Retries that the budget gains with time, so that a request can be retried when there are few requests."""


class RetryBudget:
    """A token bucket: each request adds `RETRY_SHARE` of a retry, each retry takes one. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._tokens = BURST
        self._refilled_s: float | None = None

    def note_request(self, now: float) -> None:
        """Count a new request."""
        self._refill(now, RETRY_SHARE)

    def allows(self, error: BackendError, context: RequestContext, now: float) -> bool:
        """Count a failed attempt; return whether the request may be sent again.

        A request that an engine refused as wrong is not sent again.
        """
        if isinstance(error, BackendRefused) and error.status < 500:
            context.attempts += 1
            return False
        return self.allows_another_place(context, now)

    def allows_another_place(self, context: RequestContext, now: float) -> bool:
        """Count a failed attempt that may succeed elsewhere; return whether the request may be sent again."""
        context.attempts += 1
        return context.attempts < MAX_ATTEMPTS and self.take(now)

    def take(self, now: float) -> bool:
        """Take one retry; return False if the budget is used up.

        >>> budget = RetryBudget()
        >>> [budget.take(0.0) for _ in range(200)].count(True)
        100
        """
        self._refill(now, 0.0)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, now: float, added: float) -> None:
        elapsed_s = 0.0 if self._refilled_s is None else max(0.0, now - self._refilled_s)
        self._refilled_s = now if self._refilled_s is None else max(now, self._refilled_s)
        self._tokens = min(BURST, self._tokens + added + REFILL_PER_S * elapsed_s)


class Suspect:
    """The failures of one request so far. `fingerprint` identifies the request; None if it is unknown."""

    def __init__(self, fingerprint: Fingerprint | None) -> None:
        self._fingerprint = fingerprint
        self._backends: dict[tuple[type[BackendError], int], set[str]] = {}

    def note(self, backend: str, error: BackendError, pool: BackendPool) -> None:
        """Note a failure that the pool has counted; take it back if another engine has failed the request alike."""
        if self._fingerprint is None or not (is_engine_failure(error) and is_answer(error)):
            return
        backends = self._backends.setdefault((type(error), error.status), set())
        backends.add(backend)
        if len(backends) > 1:
            pool.take_back_failures(backends, self._fingerprint)

    def note_success(self, sent_s: float, pool: BackendPool) -> None:
        """Note that an engine has answered the request: the engines that failed it are at fault, however often it came.

        Args:
            sent_s: when the answered attempt was sent, in monotonic seconds.
            pool: counts the failures.
        """
        if self._fingerprint is not None:
            for backends in self._backends.values():
                for backend in backends:
                    pool.confirm_failure(backend, self._fingerprint, sent_s)
