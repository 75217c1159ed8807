"""One call to a static engine for several requests.

The scheduler names them together; whichever of them wakes first makes the call, with the prompts of all that are still
there, as a task of its own. Each waits for its own share. One whose client leaves goes, and the call goes on without
it; when the last has left it is cancelled, and the engine with it.

What fails, fails for all, and each goes its way: back to the queue, as from any engine. Two failures are the batch's
and not its members': a refusal, which may be about one of them, so that each is sent alone, to hear for itself; and a
lack of memory, which the scheduler answers by sending halves.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backends.base import Backend
from gateway.dispatch.dispatcher import Ticket
from gateway.dispatch.job import Job
from gateway.errors import BackendError, BackendOutOfMemory, BackendRefused, BatchSplit
from gateway.protocol.batches import BatchResult, batch_body, split_answer
from gateway.scheduling.messages import Message, OutOfMemory
from gateway.upstream.client import Call, Upstream


@dataclass(slots=True, eq=False)
class BatchRequest:
    """One request that may be sent with others, for as long as somebody waits for its answer."""

    job: Job
    ticket: Ticket
    _call: "_BatchCall | None" = None
    _share: "asyncio.Future[BatchResult | None] | None" = None

    def join(self, call: "_BatchCall") -> None:
        """Be one of those that a call is for."""
        self._call, self._share = call, asyncio.get_running_loop().create_future()

    @property
    def joined(self) -> bool:
        """Whether it has a share to wait for."""
        return self._share is not None

    async def share(self) -> BatchResult | None:
        """Wait for the share; None tells to go alone.

        Raises:
            BackendError: the call failed.
        """
        share = self._share
        if share is None:
            return None
        try:
            return await share
        finally:
            _let_go(share)
            if self._share is share:  # and not that of the next call, which another member may have begun already
                self._share = None

    def settle(self, outcome: BatchResult | BaseException | None) -> None:
        """Give it its share, None to go alone, or what went wrong; one that has left gets nothing."""
        if self._share is None or self._share.done():
            return
        if isinstance(outcome, BaseException):
            self._share.set_exception(outcome)
        else:
            self._share.set_result(outcome)

    async def leave(self) -> None:
        """Be no member any more."""
        if self._share is not None:
            _let_go(self._share)
        if self._call is not None:
            await self._call.leave(self)


class BatchCalls:
    """Makes the calls that requests share.

    Args:
        upstream: the way to the engines.
        post: tells the scheduler.
        monotonic: the clock.
        on_failure: called with the backend's name, the error and the time of sending of every call that failed: once,
            however many requests share the call.
    """

    def __init__(
        self,
        upstream: Upstream,
        post: Callable[[Message], None],
        monotonic: Callable[[], float],
        on_failure: Callable[[str, BackendError, float], None],
    ) -> None:
        self._upstream = upstream
        self._post = post
        self._monotonic = monotonic
        self._on_failure = on_failure
        self._members: dict[str, BatchRequest] = {}

    @asynccontextmanager
    async def member(self, job: Job, ticket: Ticket) -> AsyncGenerator[BatchRequest]:
        """Let a request be sent with others, for as long as the block lasts."""
        member = self._members[job.request.id] = BatchRequest(job, ticket)
        try:
            yield member
        finally:
            del self._members[job.request.id]
            await member.leave()

    async def share(self, member: BatchRequest, backend: Backend, batch: tuple[str, ...]) -> BatchResult | None:
        """Send a batch, if nobody of it has done so yet, and wait for the member's share of the answer.

        Returns:
            The share; None where the member is to be sent alone: nobody else is there any more, or the engine refused
            the batch.

        Raises:
            BatchSplit: the engine ran out of memory.
            BackendError: the call failed.
        """
        if not member.joined:
            members = [self._members[id] for id in batch if id in self._members]
            if len(members) < 2:
                return None
            call = _BatchCall(members, backend, self._upstream, self._post)
            for each in members:
                each.join(call)
            self._start(call, backend.spec.name)
        return await member.share()

    def _start(self, call: "_BatchCall", backend: str) -> None:
        sent_s = self._monotonic()
        call.start(lambda error: self._on_failure(backend, error, sent_s))


class _BatchCall:
    """The call itself; `members` are in the order of its prompts."""

    def __init__(
        self, members: list[BatchRequest], backend: Backend, upstream: Upstream, post: Callable[[Message], None]
    ) -> None:
        self._members = members
        self._present = set(members)
        self._backend = backend
        self._upstream = upstream
        self._post = post
        self._task: asyncio.Task[list[BatchResult] | None] | None = None

    def start(self, on_failure: Callable[[BackendError], None]) -> None:
        """Send it; call `on_failure` if the engine fails."""
        self._on_failure = on_failure
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._settle)

    async def leave(self, member: BatchRequest) -> None:
        """Take out a member; without any, give up."""
        self._present.discard(member)
        if not self._present and self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> list[BatchResult] | None:
        """Return everybody's share, or None where everybody is to go alone."""
        try:
            async with self._upstream.send(self._backend, self._call()) as reply:
                body = await reply.read()
        except BackendOutOfMemory as error:
            if len(self._present) < 2:
                return None  # what is left of the batch has no half
            self._split()
            raise BatchSplit(error.message) from error
        except BackendRefused as error:
            if error.status < 500:
                return None
            raise
        prompt_tokens = [member.job.request.prompt_tokens for member in self._members]
        return split_answer(body, prompt_tokens, self._members[0].job.max_tokens)

    def _call(self) -> Call:
        """The first member's call, but with everybody's prompts and not for a stream."""
        first = self._members[0].job.call
        headers = {name: value for name, value in first.headers.items() if name != "accept"}
        return Call(first.path, headers, batch_body([member.job.call.body for member in self._members]))

    def _split(self) -> None:
        """Have the scheduler send halves."""
        present = [member for member in self._members if member in self._present]
        for member in present:
            member.ticket.reopen()
        self._post(OutOfMemory(tuple(member.job.request.id for member in present)))

    def _settle(self, task: "asyncio.Task[list[BatchResult] | None]") -> None:
        if task.cancelled():
            return  # nobody is left
        failure = task.exception()
        if isinstance(failure, BackendError):
            self._on_failure(failure)
        shares = None if failure else task.result()
        for at, member in enumerate(self._members):
            member.settle(failure or (shares[at] if shares else None))


def _let_go(share: "asyncio.Future[BatchResult | None]") -> None:
    """Wait no more: an error that nobody waits for is not one to warn of."""
    if not share.cancel() and not share.cancelled():
        share.exception()
