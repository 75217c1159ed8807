"""The loop that owns the scheduler: whatever happens is posted to it, and it alone steps.

A request is a `Ticket`. Who finishes it: the one who submitted it, by leaving the ticket's context, whatever came of
it. The loop itself ends only requests that it drops, and then the ticket's waiter gets the error.
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
"""The scheduler hears of an answer's growth every so many tokens."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where a request is to go; with the others of `batch`, where that is not empty, in one call.

    `rank` is for an engine that orders its own queue by priority, the lowest first.
    """

    backend: str
    batch: tuple[str, ...] = ()
    rank: int = 0


class Ticket:
    """One request's place in the queue and, later, on a backend. Leaving the context forgets the request."""

    def __init__(self, request: Request, post: Callable[[Message], None]) -> None:
        self.request = request
        self._post = post
        self._reported = 0
        self._finished = False
        self._assignment: asyncio.Future[Assignment] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._assignment.cancel() and not self._assignment.cancelled():
            self._assignment.exception()  # an error that nobody waits for any more is not one to warn of
        self.finish(None)

    async def assigned(self) -> Assignment:
        """Wait for a backend.

        Raises:
            GatewayError: the request was dropped: `QueueFull`, `QueueTimeout`, `BackendUnavailable`, `ShuttingDown`.
        """
        return await self._assignment

    def grew(self, output_tokens: int) -> None:
        """Tell that the answer has so many tokens now: the first one is news, then every `PROGRESS_TOKENS`."""
        if output_tokens - self._reported >= (PROGRESS_TOKENS if self._reported else 1):
            self._reported = output_tokens
            self._post(Progress(self.request.id, output_tokens))

    def finish(self, output_tokens: int | None) -> None:
        """Tell that the backend is through with the request, however slowly its client reads the answer.

        Args:
            output_tokens: of an answer that came to its own end; None where it did not, or nobody counted.
        """
        if not self._finished:
            self._finished = True
            self._post(Finished(self.request.id, output_tokens))

    def put_back(self, *, full: bool) -> None:
        """Tell that the backend did not take the request; wait on `assigned` again."""
        self.reopen()
        self._post(Returned(self.request.id, full))

    def reopen(self) -> None:
        """Make `assigned` wait anew: the scheduler is about to hear why."""
        self._assignment = asyncio.get_running_loop().create_future()
        self._reported = 0

    def settle(self, outcome: Assignment | GatewayError) -> None:
        """Give the waiter its backend or its error; a waiter that has left gets nothing."""
        if self._assignment.done():
            return
        if isinstance(outcome, GatewayError):
            self._assignment.set_exception(outcome)
        else:
            self._assignment.set_result(outcome)


class Dispatcher:
    """Steps the scheduler on every message, and whenever it asked to be woken.

    Args:
        scheduler: owned from now on; others may read it between two turns of the event loop.
        monotonic: the clock.
        on_stale: told the name of a healthy backend whose looks are not believed any more.
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
        """Tell the scheduler, at the loop's next turn."""
        if isinstance(message, Finished):
            self._tickets.pop(message.id, None)
        self._inbox.append(message)
        self._wakeup.set()

    def close(self) -> None:
        """Take nothing new and evict what waits; what runs goes on to its end."""
        self._closed = True
        for ticket in list(self._tickets.values()):
            ticket.settle(ShuttingDown("The gateway is stopping"))

    async def run(self) -> None:
        """Step for ever; ends by being cancelled."""
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
                    self._watch_for_staleness(message.state.name)
            wake_at_s = self.scheduler.wake_at_s(now)
            await self._sleep_until(wake_at_s)

    def _watch_for_staleness(self, backend: str) -> None:
        load = self.scheduler.load(backend)
        if load is None:
            return
        tells_memory = load.state.healthy and load.state.kv_used_tokens is not None
        stale = tells_memory and not load.believed
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
                ticket.settle(Assignment(backend, batch, rank))
            case Drop() if ticket is not None:
                ticket.settle(_error_of(action))
            case _:  # its client left in this very turn; its Finished is in the inbox
                return


def _error_of(drop: Drop) -> GatewayError:
    match drop.reason:
        case DropReason.QUEUE_FULL:
            return QueueFull("The queue is full; try again later", retry_after_s=drop.retry_after_s)
        case DropReason.QUEUE_TIMEOUT:
            return QueueTimeout("No engine had room for the request in time")
        case DropReason.BACKENDS_FAILED:
            return BackendUnavailable("Every backend that serves the model has failed this request")
