"""An event loop whose clock jumps to the next timer instead of waiting for it: hours of time-outs in no time.

A folder's `conftest.py` imports the two names at the end.
"""

import asyncio
import gc
import selectors
from collections.abc import AsyncIterator, Callable, Mapping

import pytest


class _JumpingSelector(selectors.DefaultSelector):
    """Asks the sockets once and lets the loop's clock jump over what it would have slept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None):
        if timeout is None:  # nothing to do and no timer: only another thread could help
            raise RuntimeError("the test waits for something that never happens")
        ready = super().select(0)
        if not ready:
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Timers fire in their order, at once."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualTimeLoop}


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """Fail on a task that is still there and on an exception that nobody took."""
    complaints: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    yield
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    gc.collect(1)
    await asyncio.sleep(0)
    assert (left, complaints) == ([], [])
