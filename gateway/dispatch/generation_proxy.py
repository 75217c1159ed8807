"""One generation from the queue to its last byte.

While no byte has reached the client, a failure is ours to mend: the request goes back to its place in the queue and to
another backend. After the first byte it is the client's to know.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from backends.base import Backend
from gateway.dispatch.batch_call import BatchCalls, BatchRequest
from gateway.dispatch.client import Client
from gateway.dispatch.dispatcher import Assignment, Dispatcher, Ticket
from gateway.dispatch.job import Job
from gateway.dispatch.retry_budget import RetryBudget
from gateway.dispatch.trip import Trip
from gateway.errors import (
    BackendError,
    BackendFull,
    BackendUnavailable,
    BatchSplit,
    EventTooLarge,
    ProtocolError,
    QueueTimeout,
)
from gateway.fleet.pool import BackendPool
from gateway.protocol.batches import BatchResult
from gateway.protocol.edits import with_default
from gateway.protocol.sse import StreamScanner
from gateway.upstream.client import Call, Reply, Upstream

DRAIN_S = 0.5
"""How long an engine that has said `[DONE]` may take to end its stream, before its connection is given up."""


class GenerationProxy:
    """Brings jobs to engines and answers to clients.

    Args:
        dispatcher: says which engine, and when.
        upstream: the way there.
        pool: the engines, and how they fare.
        monotonic: the clock.
        on_failure: told the backend and the error of every attempt that failed.
        budget: of further attempts.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        upstream: Upstream,
        pool: BackendPool,
        monotonic: Callable[[], float],
        on_failure: Callable[[str, BackendError], None],
        budget: RetryBudget | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._batches = BatchCalls(upstream, dispatcher.post, monotonic, pool.record_failure)
        self._pool = pool
        self._monotonic = monotonic
        self._on_failure = on_failure
        self._budget = budget or RetryBudget()

    async def run(self, job: Job, client: Client, trip: Trip) -> None:
        """Do the job; `trip` is filled in on the way, also when it ends in an error or is cancelled.

        Raises:
            GatewayError: dropped from the queue, refused by the engine, or failed; `client.started` tells which shape
                of error the client can still get.
        """
        failure: BackendError | None = None
        self._budget.note_request(trip.arrival_s)
        with self._dispatcher.submit(job.request) as ticket:
            async with self._batches.member(job, ticket) as member:
                while True:
                    try:
                        assignment = await ticket.assigned()
                    except (BackendUnavailable, QueueTimeout) as dropped:  # nowhere else to go: what failed says more
                        raise failure or dropped from dropped
                    trip.backend, trip.dispatched_s = assignment.backend, self._monotonic()
                    try:
                        return await self._attempt(assignment, member, client, trip)
                    except BackendError as error:
                        self._on_failure(assignment.backend, error)
                        if client.started or not self._may_try_again(error, trip):
                            raise
                        failure = failure if isinstance(error, BackendFull) else error
                        if not isinstance(error, BatchSplit):
                            ticket.put_back(full=isinstance(error, BackendFull))

    async def _attempt(self, assignment: Assignment, member: BatchRequest, client: Client, trip: Trip) -> None:
        backend, sent_s = self._pool.backend(assignment.backend), self._monotonic()
        if assignment.batch and (share := await self._batches.share(member, backend, assignment.batch)):
            return await self._share(share, member.job, member.ticket, client, trip)
        try:
            await self._alone(assignment, backend, member, client, trip)
        except BackendError as error:  # a batch call reports its failure itself, once for all of its requests
            self._pool.record_failure(assignment.backend, error, sent_s)
            raise

    async def _alone(
        self, assignment: Assignment, backend: Backend, member: BatchRequest, client: Client, trip: Trip
    ) -> None:
        job, ticket = member.job, member.ticket
        async with self._upstream.send(backend, _call(job, backend, assignment.rank)) as reply:
            if not reply.is_stream:
                return await self._whole(await reply.read(), reply, member, client, trip)
            scanner = job.api_format.scanner(hide_usage=job.hides_usage)
            async with aclosing(reply.chunks()) as chunks:
                return await self._stream(scanner, chunks, reply, ticket, client, trip)

    def _may_try_again(self, error: BackendError, trip: Trip) -> bool:
        if isinstance(error, (BackendFull, BatchSplit)):  # no failure, so no attempt
            return True
        return self._budget.allows(error, trip, self._monotonic())

    async def _share(self, share: BatchResult, job: Job, ticket: Ticket, client: Client, trip: Trip) -> None:
        """Answer with a part of a batch's answer, in the form that this client asked for."""
        trip.usage, trip.finish_reason = share.usage, share.finish_reason
        ticket.finish(trip.output_tokens or None)
        self._answers(trip, whole=True)
        if job.stream:
            body = share.stream(with_usage=job.includes_usage)
            trip.first_byte_s = self._monotonic()
            await client.start(200, "text/event-stream; charset=utf-8", length=None)
        else:
            body = share.whole()
            await client.start(200, "application/json", length=len(body))
        trip.complete = True
        await client.send(body, more=False)

    async def _whole(self, body: bytes, reply: Reply, member: BatchRequest, client: Client, trip: Trip) -> None:
        answer = member.job.api_format.read_answer(body)
        if answer is None:
            raise ProtocolError("The engine's answer is not one of its API")
        if answer.failure is not None:
            raise ProtocolError(f"The engine failed: {answer.failure}")
        trip.usage, trip.finish_reason = answer.usage, answer.finish_reason
        member.ticket.finish(trip.output_tokens or None)
        self._answers(trip, whole=True)
        await client.start(reply.status, reply.content_type, length=len(body))
        trip.complete = True
        await client.send(body, more=False)

    async def _stream(
        self,
        scanner: StreamScanner,
        chunks: AsyncGenerator[bytes, None],
        reply: Reply,
        ticket: Ticket,
        client: Client,
        trip: Trip,
    ) -> None:
        async for chunk in chunks:
            forward = _scan(scanner, chunk)
            trip.events, trip.usage, trip.finish_reason = scanner.events, scanner.usage, scanner.finish_reason
            if forward and not client.started:
                trip.first_byte_s = self._monotonic()
                self._answers(trip, whole=False)
                await client.start(reply.status, reply.content_type, length=None)
            if forward:
                await client.send(forward, more=True)
            if scanner.error is not None:
                raise ProtocolError(f"The engine failed: {scanner.error}")
            if scanner.done:
                break
            ticket.grew(scanner.events)
        if not scanner.succeeded:
            raise BackendUnavailable("The engine's stream ended before the answer did")
        ticket.finish(trip.output_tokens or None)
        self._answers(trip, whole=True)
        trip.complete = True
        await client.send(scanner.close(), more=False)
        await reply.drain(DRAIN_S)

    def _answers(self, trip: Trip, *, whole: bool) -> None:
        if trip.backend is not None and trip.dispatched_s is not None:
            self._pool.record_answer(trip.backend, trip.dispatched_s, complete=whole)


def _scan(scanner: StreamScanner, chunk: bytes) -> bytes:
    try:
        return scanner.feed(chunk)
    except EventTooLarge as error:
        raise ProtocolError(f"The engine sent {error}") from error


def _call(job: Job, backend: Backend, rank: int) -> Call:
    if not (job.takes_priority and backend.spec.priority):
        return job.call
    return replace(job.call, body=with_default(job.call.body, "priority", rank))
