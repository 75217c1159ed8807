"""Decides who is at fault when an engine fails a request.

If several engines fail it alike, the request is at fault. If another engine answers it, the first engine is at fault.
"""

from gateway.errors import BackendError
from gateway.fleet.breaker import Fingerprint
from gateway.fleet.pool import BackendPool, is_answer, is_engine_failure


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
