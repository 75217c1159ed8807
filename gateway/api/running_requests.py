"""The requests that the gateway answers now, so that a stop can wait for them and end the rest."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import ShuttingDown


class RunningRequests:
    """The tasks of all requests, waiting and running.

    Attributes:
        stopping: whether the gateway got a stop signal; it still answers requests, but is not ready any more.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count the current task as a request.

        Raises:
            ShuttingDown: `end` was called before the request had its answer.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ended:
                raise
            task.uncancel()
            raise ShuttingDown("The gateway is stopping") from None
        finally:
            self._tasks.discard(task)

    async def finished(self, timeout_s: float) -> None:
        """Wait until the requests of this moment have their answers, at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=max(0.0, timeout_s))

    def end(self) -> None:
        """End all requests with `ShuttingDown`."""
        self._ended = True
        for task in list(self._tasks):
            task.cancel()
