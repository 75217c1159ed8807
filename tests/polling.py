"""Waiting for conditions that set no event."""

import asyncio
import time
from collections.abc import Callable

POLL_S = 0.01


def wait_until(condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    """Poll until the condition holds.

    Raises:
        AssertionError: The condition is still false at the deadline.
    """
    end_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {deadline_s:g} s"
        time.sleep(POLL_S)


async def until(condition: Callable[[], object], deadline_s: float = 10.0) -> None:
    """Poll until the condition holds, while other tasks run.

    Raises:
        TimeoutError: The condition is still false at the deadline.
    """
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - these conditions set no event
            await asyncio.sleep(POLL_S)
