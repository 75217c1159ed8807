"""The circuit breaker of one backend: when it gets no more requests, and how it comes back.

```
CLOSED ── failures ──▶ OPEN ── back-off ──▶ HALF_OPEN ── first byte of an answer ──▶ CLOSED, with a growing limit
                         ▲                      │
                         └────── a failure ─────┘   the back-off doubles
```
A failure that the engine answered counts once per `Fingerprint`, so one client that repeats a bad request does not open
the circuit for everybody. Failures of one application alone do not open it while another application gets answers. A
failed connection has no fingerprint and always counts. While a circuit is half-open, requests that failed before it
opened wait for `TRIAL_RESERVED_S`, so that the trial is another request.

Pure: every time is an argument, in monotonic seconds. Calls that were sent before the circuit opened are ignored.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import NamedTuple

FAILURES_TO_OPEN = 5
"""Failures in a row that open the circuit."""

FAILURES_TO_REOPEN = 2
"""Failures in a row that open the circuit while the backend warms up."""

WINDOW_S = 30.0
"""Older outcomes do not count."""

MAX_OUTCOMES = 100
"""Number of outcomes that are kept, the newest ones."""

MIN_OUTCOMES = 20
"""With fewer outcomes in the window, their ratio does not count."""

FAILED_SHARE = 0.5
"""Share of failed outcomes in the window that opens the circuit, in whatever order they come."""

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0

TRIAL_RESERVED_S = 5.0
"""Time for which a half-open circuit takes no request that failed before it opened. After that it takes any request."""

RAMP_START = 4
"""Most concurrent requests in the first second of a warm-up. The limit doubles every second."""

RAMP_S = 7.0
"""Length of a warm-up. In its last second the limit is 256, which delays no request in practice."""


class Circuit(StrEnum):
    """Whether a backend gets requests: all (`CLOSED`), one at a time (`HALF_OPEN`) or none (`OPEN`)."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


Fingerprint = tuple[int, int]
"""Hashes of a request's application and prompt: two requests with the same fingerprint are the same test."""


def fingerprint_of(app: str | None, *prompt: object) -> Fingerprint:
    """Return the fingerprint of a request. It is valid within this process."""
    return hash(app), hash(prompt)


class _Outcome(NamedTuple):
    """One answer or failure at a time; `fingerprint` is None if the request is unknown or the connection failed."""

    time_s: float
    succeeded: bool
    fingerprint: Fingerprint | None


class _Opening(NamedTuple):
    """The state before the circuit opened, and the request whose failure opened it."""

    fingerprint: Fingerprint | None
    circuit: Circuit
    backoff_s: float


@dataclass(slots=True)
class Breaker:
    """The circuit breaker of one backend.

    Attributes:
        circuit: its state.
        retry_s: when an open circuit becomes half-open; infinite before the first failure.
    """

    circuit: Circuit = Circuit.CLOSED
    retry_s: float = inf
    _outcomes: deque[_Outcome] = field(default_factory=lambda: deque(maxlen=MAX_OUTCOMES))
    _opening: _Opening | None = None
    _half_open_s: float = -inf
    _opened_s: float = -inf
    _backoff_s: float = 0.0
    _ramp_s: float | None = None

    @property
    def warming_up(self) -> bool:
        """Whether the limit still grows."""
        return self._ramp_s is not None

    def begin_ramp(self, now: float) -> None:
        """Start a warm-up: the backend is new, or it was unreachable."""
        self._ramp_s = now

    def poll(self, now: float, *, is_last: bool = False) -> None:
        """Apply what time alone changes: an open circuit becomes half-open, a warm-up ends.

        Args:
            now: monotonic seconds.
            is_last: no other backend can do the work. Then an open circuit becomes half-open at once.
        """
        if self.circuit is Circuit.OPEN and (is_last or now >= self.retry_s):
            self.circuit = Circuit.HALF_OPEN
            self._half_open_s = now
        if self._ramp_s is not None and now >= self._ramp_s + RAMP_S:
            self._ramp_s = None
            self._backoff_s = 0.0

    def record_first_byte(self, sent_s: float, now: float) -> None:
        """Record that an answer began. In a trial, this closes the circuit and starts a warm-up."""
        if self.circuit is Circuit.HALF_OPEN and sent_s >= self._opened_s:
            self._close()
            self.begin_ramp(now)

    def record_success(self, sent_s: float, now: float, fingerprint: Fingerprint | None = None) -> None:
        """Record that an answer was complete."""
        if self.circuit is Circuit.CLOSED and sent_s >= self._opened_s:
            self._outcomes.append(_Outcome(now, True, fingerprint))

    def record_failure(self, sent_s: float, now: float, fingerprint: Fingerprint | None = None) -> None:
        """Record that the backend failed, and open the circuit if it fails too often.

        Args:
            sent_s: when the call was sent.
            now: monotonic seconds.
            fingerprint: of the request that the engine answered with a failure; None if the connection failed.
        """
        if self.circuit is Circuit.OPEN or sent_s < self._opened_s:
            return
        known = fingerprint is not None and any(outcome.fingerprint == fingerprint for outcome in self._failures())
        if known:
            self._forget(fingerprint)  # the newest failure stands for all
        self._outcomes.append(_Outcome(now, False, fingerprint))
        if self.circuit is Circuit.HALF_OPEN or self._fails_too_often(now):
            self._open(now, fingerprint)
        elif self._ramp_s is not None and not known:
            self._ramp_s = now

    def confirm_failure(self, fingerprint: Fingerprint, sent_s: float, now: float) -> None:
        """Count the failure of a request each time, like a failed connection: another backend answered it."""
        if self.circuit is Circuit.CLOSED and sent_s >= self._opened_s:
            self._forget(fingerprint)
            self.record_failure(sent_s, now)

    def trip(self, sent_s: float, now: float) -> None:
        """Open the circuit at once: every request to the backend would fail now."""
        if self.circuit is not Circuit.OPEN and sent_s >= self._opened_s:
            self._open(now, None)

    def take_back(self, fingerprint: Fingerprint, now: float) -> None:
        """Remove a request's failures: other engines fail it too, so the request is at fault. Undo what they opened."""
        self._forget(fingerprint)
        opening = self._opening
        if self.circuit is Circuit.CLOSED or opening is None or opening.fingerprint != fingerprint:
            return
        self._backoff_s = opening.backoff_s
        if opening.circuit is Circuit.HALF_OPEN:
            self.circuit, self._opening = Circuit.HALF_OPEN, None
            self._half_open_s = now
        else:
            self.circuit, self._opening = Circuit.CLOSED, None
            self._opened_s = -inf

    def reserved_from(self, now: float) -> frozenset[Fingerprint]:
        """Return the requests that a half-open circuit does not take yet: those whose failures opened it."""
        if self.circuit is not Circuit.HALF_OPEN or now >= self._half_open_s + TRIAL_RESERVED_S:
            return frozenset()
        return frozenset(outcome.fingerprint for outcome in self._failures() if outcome.fingerprint is not None)

    def limit(self, now: float) -> int | None:
        """Return the most concurrent requests during a trial or a warm-up; None for no limit."""
        if self.circuit is Circuit.HALF_OPEN:
            return 1
        if self._ramp_s is None:
            return None
        return RAMP_START << max(0, int(now - self._ramp_s))

    def next_change_s(self, now: float) -> float:
        """Return when `poll` or `limit` gives another result without any further event."""
        if self.circuit is Circuit.OPEN:
            return self.retry_s
        if self.reserved_from(now):
            return self._half_open_s + TRIAL_RESERVED_S
        return inf if self._ramp_s is None else self._ramp_s + int(now - self._ramp_s) + 1.0

    def _fails_too_often(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0].time_s < now - WINDOW_S:
            self._outcomes.popleft()
        if self._is_one_application():
            return False
        outcomes = [outcome.succeeded for outcome in self._outcomes]
        in_a_row = outcomes[::-1].index(True) if True in outcomes else len(outcomes)
        if in_a_row >= (FAILURES_TO_REOPEN if self.warming_up else FAILURES_TO_OPEN):
            return True
        return len(outcomes) >= MIN_OUTCOMES and outcomes.count(False) >= FAILED_SHARE * len(outcomes)

    def _is_one_application(self) -> bool:
        """Return whether all failures are of one application, and another application gets answers."""
        apps = {outcome.fingerprint[0] if outcome.fingerprint else None for outcome in self._failures()}
        if len(apps) != 1 or None in apps:
            return False
        return any(o.succeeded and o.fingerprint and o.fingerprint[0] not in apps for o in self._outcomes)

    def _failures(self) -> Iterable[_Outcome]:
        return (outcome for outcome in self._outcomes if not outcome.succeeded)

    def _forget(self, fingerprint: Fingerprint | None) -> None:
        """Remove the failures of a request."""
        kept = [outcome for outcome in self._outcomes if outcome.succeeded or outcome.fingerprint != fingerprint]
        self._outcomes = deque(kept, MAX_OUTCOMES)

    def _open(self, now: float, fingerprint: Fingerprint | None) -> None:
        self._opening = _Opening(fingerprint, self.circuit, self._backoff_s)
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s) if self._backoff_s else FIRST_BACKOFF_S
        self.circuit = Circuit.OPEN
        self._opened_s, self.retry_s = now, now + self._backoff_s
        self._ramp_s = None

    def _close(self) -> None:
        self.circuit, self._opening = Circuit.CLOSED, None
        self._outcomes.clear()
