"""Time, as an argument: whoever needs it is given a clock, and a test gives another one."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, UTC for the record."""

    def monotonic(self) -> float:
        """Seconds from some fixed point; never go back."""
        ...

    def now(self) -> datetime:
        """The time of day, with its zone."""
        ...


class SystemClock:
    """This machine's."""

    def monotonic(self) -> float:
        """Read the monotonic clock."""
        return time.monotonic()

    def now(self) -> datetime:
        """Read the wall clock."""
        return datetime.now(UTC)
