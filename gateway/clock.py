"""The source of time. Code that needs the time gets a clock as an argument, so that tests can use another one."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Monotonic seconds for intervals, and the time of day for records."""

    def monotonic(self) -> float:
        """Return seconds since a fixed but arbitrary moment. They never decrease."""
        ...

    def now(self) -> datetime:
        """Return the date and time, with a time zone."""
        ...


class SystemClock:
    """The clock of this machine."""

    def monotonic(self) -> float:
        """Return seconds of the monotonic clock."""
        return time.monotonic()

    def now(self) -> datetime:
        """Return the date and time in UTC."""
        return datetime.now(UTC)
