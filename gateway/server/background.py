"""The tasks that run as long as the gateway serves."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from gateway.errors import TaskEnded

_log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[Any, Any, None]]
"""Starts work that ends only by being cancelled."""


class BackgroundTasks:
    """Runs tasks and notices when one ends by itself.

    Args:
        required: work by name; if one of them ends, the gateway is not alive any more.
        optional: work by name that the gateway can do without.
    """

    def __init__(self, required: Mapping[str, Work], optional: Mapping[str, Work]) -> None:
        self._required = required
        self._optional = optional
        self._tasks: list[asyncio.Task[None]] = []

    async def while_running(self, work: Coroutine[Any, Any, None]) -> None:
        """Wait for `work`, but not longer than the required tasks run: it may wait for one of them.

        Raises:
            TaskEnded: a required task ended by itself before `work` was done.
        """
        waiting = asyncio.ensure_future(work)
        try:
            await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            ended = next((task for task in self._tasks if task.done()), None)
            if ended is not None and not waiting.done():
                cause = None if ended.cancelled() else ended.exception()
                raise TaskEnded(f"the {ended.get_name()} task ended: {cause or 'without an error'}") from cause
            await waiting
        finally:
            waiting.cancel()

    def alive(self) -> bool:
        """Return whether all required tasks run."""
        return not any(task.done() for task in self._tasks)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Run all tasks until the block ends."""
        self._tasks = [asyncio.create_task(work(), name=name) for name, work in self._required.items()]
        optional = [asyncio.create_task(work(), name=name) for name, work in self._optional.items()]
        tasks = [*self._tasks, *optional]
        for task in tasks:
            task.add_done_callback(_report_end)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _log.critical("The %s task ended; restart the gateway", task.get_name(), exc_info=task.exception())
