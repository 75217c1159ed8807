"""The loop that owns the scheduler: everybody else posts messages, and only this loop steps the scheduler.

A request in the scheduler is a `Ticket`. Its submitter finishes it by leaving the ticket's context, in every case. The
loop ends only the requests that the scheduler drops; then `Ticket.assignment` raises the error.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from gateway.errors import BackendUnavailable, GatewayError, QueueFull, QueueTimeout, ShuttingDown
from gateway.scheduling.messages import (
    Action,
    BackendObserved,
    Dispatch,
    Drop,
    DropReason,
    Finished,
    Message,
    Progress,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.scheduler import Scheduler

PROGRESS_TOKENS = 16
"""Output tokens between two progress reports to the scheduler."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where to send a request.

    Attributes:
        backend: name of the backend.
        batch: ids of the requests that share one call; empty for a call of its own.
        rank: priority for an engine that orders its own queue by it, the lowest first.
    """

    backend: str
    batch: tuple[str, ...] = ()
    rank: int = 0


class Ticket:
    """One request in the scheduler: waiting, then running. Leaving the context removes it from the scheduler."""

    def __init__(self, request: Request, post: Callable[[Message], None]) -> None:
        self.request = request
        self._post = post
        self._reported_tokens = 0
        self._finished = False
        self._future: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._future.cancel() and not self._future.cancelled():
            self._future.exception()  # read the error, or asyncio warns that nobody did
        self.finish(None)

    async def assignment(self) -> Assignment:
        """Wait until the scheduler assigns the request to a backend.

        Raises:
            GatewayError: the scheduler dropped the request: `QueueFull`, `QueueTimeout`, `BackendUnavailable` or
                `ShuttingDown`.
        """
        return await self._future

    def report_progress(self, output_tokens: int) -> None:
        """Report the answer's length; the scheduler gets the first token's report and one per `PROGRESS_TOKENS`."""
        if output_tokens - self._reported_tokens >= (PROGRESS_TOKENS if self._reported_tokens else 1):
            self._reported_tokens = output_tokens
            self._post(Progress(self.request.id, output_tokens))

    def finish(self, output_tokens: int | None) -> None:
        """Report that the backend has finished the request; its client may still be reading the answer.

        Args:
            output_tokens: length of a complete answer; None if the answer is incomplete or its length is unknown.
        """
        if not self._finished:
            self._finished = True
            self._post(Finished(self.request.id, output_tokens))

    def return_to_queue(self, *, full: bool, too_long: bool = False, away: bool = False) -> None:
        """Report that the backend did not take the request; `assignment` waits for the next backend."""
        self.reset()
        self._post(Returned(self.request.id, full, too_long, away))

    def reset(self) -> None:
        """Let `assignment` wait for another backend."""
        self._future = asyncio.get_running_loop().create_future()
        self._reported_tokens = 0

    def resolve(self, outcome: Assignment | GatewayError) -> None:
        """Let `assignment` return the backend or raise the error, unless it has already done so."""
        if self._future.done():
            return
        if isinstance(outcome, GatewayError):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)


class Dispatcher:
    """Steps the scheduler on every message, and when the scheduler asks for a step.

    Args:
        scheduler: changed by the dispatcher only; others may read it.
        monotonic: returns the time in seconds.
        on_stale: called with the name of a healthy backend whose metrics have become stale.
    """

    def __init__(
        self, scheduler: Scheduler, monotonic: Callable[[], float], on_stale: Callable[[str], None] = lambda _: None
    ) -> None:
        self.scheduler = scheduler
        self._monotonic = monotonic
        self._on_stale = on_stale
        self._stale: set[str] = set()
        self._inbox: list[Message] = []
        self._tickets: dict[str, Ticket] = {}
        self._wakeup = asyncio.Event()
        self._closed = False

    def submit(self, request: Request) -> Ticket:
        """Queue a request.

        Raises:
            ShuttingDown: the gateway is stopping.
        """
        if self._closed:
            raise ShuttingDown("The gateway is stopping")
        ticket = self._tickets[request.id] = Ticket(request, self.post)
        self.post(Submit(request))
        return ticket

    def post(self, message: Message) -> None:
        """Pass a message to the scheduler in the loop's next step."""
        if isinstance(message, Finished):
            self._tickets.pop(message.id, None)
        self._inbox.append(message)
        self._wakeup.set()

    def close(self) -> None:
        """Accept no new requests and evict the waiting ones; running requests continue."""
        self._closed = True
        for ticket in list(self._tickets.values()):
            ticket.resolve(ShuttingDown("The gateway is stopping"))

    async def run(self) -> None:
        """Step the scheduler until the task is cancelled."""
        wake_at_s = None
        while True:
            self._wakeup.clear()
            inbox, self._inbox = self._inbox, []
            now = self._monotonic()
            if wake_at_s is not None and now >= wake_at_s:
                inbox.append(Tick())
            for action in self.scheduler.step(inbox, now):
                self._apply(action)
            for message in inbox:
                if isinstance(message, BackendObserved):
                    self._check_staleness(message.state.name)
            wake_at_s = self.scheduler.wake_at_s(now)
            await self._sleep_until(wake_at_s)

    def _check_staleness(self, backend: str) -> None:
        status = self.scheduler.backend_status(backend)
        if status is None:
            return
        stale = status.healthy and status.reports_memory and not status.metrics_fresh
        if stale and backend not in self._stale:
            self._stale.add(backend)
            self._on_stale(backend)
        elif not stale:
            self._stale.discard(backend)

    async def _sleep_until(self, wake_at_s: float | None) -> None:
        delay_s = None if wake_at_s is None else max(0.0, wake_at_s - self._monotonic())
        try:
            async with asyncio.timeout(delay_s):
                await self._wakeup.wait()
        except TimeoutError:
            return

    def _apply(self, action: Action) -> None:
        ticket = self._tickets.get(action.id)
        match action:
            case Dispatch(_, backend, batch, rank) if ticket is not None:
                ticket.resolve(Assignment(backend, batch, rank))
            case Drop() if ticket is not None:
                ticket.resolve(_error_of(action))
            case _:  # its client has left, and its Finished message is in the inbox
                return


def _error_of(drop: Drop) -> GatewayError:
    match drop.reason:
        case DropReason.QUEUE_FULL:
            return QueueFull("The queue is full; try again later", retry_after_s=drop.retry_after_s)
        case DropReason.QUEUE_TIMEOUT:
            return QueueTimeout("No engine had room for the request before its queue timeout")
        case DropReason.BACKENDS_FAILED:
            return BackendUnavailable("Every backend that serves the model has failed this request")
