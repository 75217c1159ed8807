"""Recognizes a request that fails alike on several engines: then the request is at fault, and not the engines."""

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
