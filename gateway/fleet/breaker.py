"""The circuit breaker of one backend: when it gets no more requests, and how it comes back.

```
CLOSED ── failures ──▶ OPEN ── back-off ──▶ HALF_OPEN ── first byte of an answer ──▶ CLOSED, with a growing limit
                         ▲                      │
                         └────── a failure ─────┘   the back-off doubles
```
Pure: every time is an argument, in monotonic seconds. Calls that were sent before the circuit opened are ignored.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

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

RAMP_START = 4
"""Most concurrent requests in the first second of a warm-up. The limit doubles every second."""

RAMP_S = 7.0
"""Length of a warm-up. In its last second the limit is 256, which delays no request in practice."""


class Circuit(StrEnum):
    """Whether a backend gets requests: all (`CLOSED`), one at a time (`HALF_OPEN`) or none (`OPEN`)."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(slots=True)
class Breaker:
    """The circuit breaker of one backend.

    Attributes:
        circuit: its state.
        retry_s: when an open circuit becomes half-open; infinite before the first failure.
    """

    circuit: Circuit = Circuit.CLOSED
    retry_s: float = inf
    _outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=MAX_OUTCOMES))
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

    def poll(self, now: float) -> None:
        """Apply what time alone changes: an open circuit becomes half-open, a warm-up ends."""
        if self.circuit is Circuit.OPEN and now >= self.retry_s:
            self.circuit = Circuit.HALF_OPEN
        if self._ramp_s is not None and now >= self._ramp_s + RAMP_S:
            self._ramp_s = None
            self._backoff_s = 0.0

    def record_first_byte(self, sent_s: float, now: float) -> None:
        """Record that an answer began. In a trial, this closes the circuit and starts a warm-up."""
        if self.circuit is Circuit.HALF_OPEN and sent_s >= self._opened_s:
            self.circuit = Circuit.CLOSED
            self.begin_ramp(now)

    def record_success(self, sent_s: float, now: float) -> None:
        """Record that an answer was complete."""
        if self.circuit is Circuit.CLOSED and sent_s >= self._opened_s:
            self._outcomes.append((now, True))

    def record_failure(self, sent_s: float, now: float) -> None:
        """Record that the backend failed, and open the circuit if it fails too often."""
        if self.circuit is Circuit.OPEN or sent_s < self._opened_s:
            return
        self._outcomes.append((now, False))
        if self.circuit is Circuit.HALF_OPEN or self._fails_too_often(now):
            self._open(now)
        elif self._ramp_s is not None:
            self._ramp_s = now

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
        return inf if self._ramp_s is None else self._ramp_s + int(now - self._ramp_s) + 1.0

    def _fails_too_often(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0][0] < now - WINDOW_S:
            self._outcomes.popleft()
        outcomes = [succeeded for _, succeeded in self._outcomes]
        in_a_row = outcomes[::-1].index(True) if True in outcomes else len(outcomes)
        if in_a_row >= (FAILURES_TO_REOPEN if self.warming_up else FAILURES_TO_OPEN):
            return True
        return len(outcomes) >= MIN_OUTCOMES and outcomes.count(False) >= FAILED_SHARE * len(outcomes)

    def _open(self, now: float) -> None:
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s) if self._backoff_s else FIRST_BACKOFF_S
        self.circuit = Circuit.OPEN
        self._opened_s, self.retry_s = now, now + self._backoff_s
        self._ramp_s = None
        self._outcomes.clear()
