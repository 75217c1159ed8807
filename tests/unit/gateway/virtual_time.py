"""An event loop whose clock jumps to the next timer instead of waiting for it, so that long timeouts take no time.

The `conftest.py` of a folder imports `pytest_asyncio_loop_factories` and `no_task_is_left`.
"""

import asyncio
import gc
import selectors
from collections.abc import AsyncIterator, Callable, Mapping

import pytest


class _JumpingSelector(selectors.DefaultSelector):
    """Polls the sockets once, and advances the clock of the loop by the time that it would have slept."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None):
        if timeout is None:  # nothing to do and no timer, so only another thread could continue the test
            raise RuntimeError("the test waits for an event that never happens")
        ready = super().select(0)
        if not ready:
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers fire in order and without delay."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"virtual": VirtualTimeLoop}


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Fail if a task still exists after the test, or if an exception was not handled."""
    unhandled: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unhandled.append(str(context)))
    yield
    await asyncio.sleep(0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    gc.collect(1)
    await asyncio.sleep(0)
    assert (left, unhandled) == ([], [])
