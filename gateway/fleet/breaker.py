"""When a backend that fails what it is sent gets no more, and how it comes back.

```
CLOSED ── failures ──▶ OPEN ── back-off ──▶ HALF_OPEN ── an answer ──▶ CLOSED, with a limit that grows
                         ▲                      │
                         └────── a failure ─────┘   the back-off doubles
```
Pure: every time is an argument. An attempt that was sent before the circuit opened says nothing of what came after.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

FAILURES_TO_OPEN = 5
"""Failures in a row, without a success in between, that open the circuit."""

FAILURES_TO_REOPEN = 2
"""Likewise while the backend warms up."""

WINDOW_S = 30.0
"""How long an outcome counts."""

MAX_OUTCOMES = 100
"""The newest outcomes, which alone count."""

MIN_OUTCOMES = 20
"""Outcomes in the window from which their ratio counts."""

FAILED_SHARE = 0.5
"""Of the outcomes in the window: so many failures open the circuit, in whatever order they come."""

FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 60.0

RAMP_START = 4
"""Requests that a backend may run at once in the first second of its warm-up; twice as many in each that follows."""

RAMP_S = 7.0
"""Length of a warm-up: in its last second the limit is 256, beyond which it would hold nobody up."""


class Circuit(StrEnum):
    """Whether requests go to a backend."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


@dataclass(slots=True)
class Breaker:
    """One backend's circuit."""

    circuit: Circuit = Circuit.CLOSED
    retry_s: float = inf
    """When an open circuit is half-opened."""
    _outcomes: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=MAX_OUTCOMES))
    _opened_s: float = -inf
    _backoff_s: float = 0.0
    _ramp_s: float | None = None

    @property
    def warming_up(self) -> bool:
        """Whether its limit still grows."""
        return self._ramp_s is not None

    def begin_ramp(self, now: float) -> None:
        """Have the backend warm up: it is new, or it was away."""
        self._ramp_s = now

    def poll(self, now: float) -> None:
        """Let time pass: an open circuit half-opens, a warm-up ends."""
        if self.circuit is Circuit.OPEN and now >= self.retry_s:
            self.circuit = Circuit.HALF_OPEN
        if self._ramp_s is not None and now >= self._ramp_s + RAMP_S:
            self._ramp_s = None
            self._backoff_s = 0.0

    def answered(self, sent_s: float, now: float) -> None:
        """Take in that a request's answer began: the trial's closes the circuit, and the backend warms up."""
        if self.circuit is Circuit.HALF_OPEN and sent_s >= self._opened_s:
            self.circuit = Circuit.CLOSED
            self.begin_ramp(now)

    def succeeded(self, sent_s: float, now: float) -> None:
        """Take in that a request's answer came to its end."""
        if self.circuit is Circuit.CLOSED and sent_s >= self._opened_s:
            self._outcomes.append((now, True))

    def failed(self, sent_s: float, now: float) -> None:
        """Take in that a request failed there, through no fault of its own."""
        if self.circuit is Circuit.OPEN or sent_s < self._opened_s:
            return
        self._outcomes.append((now, False))
        if self.circuit is Circuit.HALF_OPEN or self._fails_too_often(now):
            self._open(now)
        elif self._ramp_s is not None:
            self._ramp_s = now

    def limit(self, now: float) -> int | None:
        """Most requests that it may run at once of those sent since it came back; None for any number."""
        if self.circuit is Circuit.HALF_OPEN:
            return 1
        if self._ramp_s is None:
            return None
        return RAMP_START << max(0, int(now - self._ramp_s))

    def next_change_s(self, now: float) -> float:
        """When `poll` or `limit` will show something else though nothing happens."""
        if self.circuit is Circuit.OPEN:
            return self.retry_s
        return inf if self._ramp_s is None else self._ramp_s + int(now - self._ramp_s) + 1.0

    def _fails_too_often(self, now: float) -> bool:
        while self._outcomes and self._outcomes[0][0] < now - WINDOW_S:
            self._outcomes.popleft()
        lately = [succeeded for _, succeeded in self._outcomes]
        in_a_row = lately[::-1].index(True) if True in lately else len(lately)
        if in_a_row >= (FAILURES_TO_REOPEN if self.warming_up else FAILURES_TO_OPEN):
            return True
        return len(lately) >= MIN_OUTCOMES and lately.count(False) >= FAILED_SHARE * len(lately)

    def _open(self, now: float) -> None:
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s) if self._backoff_s else FIRST_BACKOFF_S
        self.circuit = Circuit.OPEN
        self._opened_s, self.retry_s = now, now + self._backoff_s
        self._ramp_s = None
        self._outcomes.clear()
