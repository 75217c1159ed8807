"""One generation from the queue to its last byte.

While no byte has reached the client, a failure is ours to mend: the request goes back to its place in the queue and to
another backend. After the first byte it is the client's to know.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from backends.base import Backend
from gateway.dispatch.dispatcher import Dispatcher, Ticket
from gateway.dispatch.trip import Trip
from gateway.dispatch.upstream import BackendFull, Call, Reply, Upstream
from gateway.errors import BackendError, BackendRefused, BackendUnavailable, ProtocolError, QueueTimeout
from gateway.scheduling.messages import Request
from gateway.wire.answers import read_answer
from gateway.wire.sse import EventTooLarge, StreamScanner

MAX_ATTEMPTS = 3
"""Backends that one request may fail on."""


DRAIN_S = 0.5
"""How long an engine that has said `[DONE]` may take to end its stream, before its connection is given up."""


class Client(Protocol):
    """The one who asked."""

    @property
    def started(self) -> bool:
        """Whether a byte has gone out."""
        ...

    async def start(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the status and the headers."""
        ...

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body; waits while the client is slow."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """One generation to be done. `hide_usage`: the gateway asked for a stream's usage, not the client."""

    request: Request
    call: Call
    hide_usage: bool


class Relay:
    """Brings jobs to engines and answers to clients."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        upstream: Upstream,
        backend: Callable[[str], Backend],
        monotonic: Callable[[], float],
        on_failure: Callable[[str, BackendError], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._upstream = upstream
        self._backend = backend
        self._monotonic = monotonic
        self._on_failure = on_failure

    async def run(self, job: Job, client: Client, trip: Trip) -> None:
        """Do the job; `trip` is filled in on the way, also when it ends in an error or is cancelled.

        Raises:
            GatewayError: dropped from the queue, refused by the engine, or failed; `client.started` tells which shape
                of error the client can still get.
        """
        failure: BackendError | None = None
        with self._dispatcher.submit(job.request) as ticket:
            while True:
                try:
                    name = await ticket.assigned()
                except (BackendUnavailable, QueueTimeout) as dropped:  # nowhere else to go: what failed says more
                    raise failure or dropped from dropped
                trip.backend, trip.dispatched_s = name, self._monotonic()
                try:
                    return await self._attempt(job, self._backend(name), ticket, client, trip)
                except BackendError as error:
                    self._on_failure(name, error)
                    if client.started or not _worth_another(error, trip):
                        raise
                    full = isinstance(error, BackendFull)
                    failure = failure if full else error
                    ticket.put_back(full=full)

    async def _attempt(self, job: Job, backend: Backend, ticket: Ticket, client: Client, trip: Trip) -> None:
        async with self._upstream.send(backend, job.call) as reply:
            if reply.is_stream:
                async with aclosing(reply.chunks()) as chunks:
                    await self._stream(StreamScanner(hide_usage=job.hide_usage), chunks, reply, ticket, client, trip)
            else:
                await self._whole(await reply.read(), reply, client, trip)

    async def _whole(self, body: bytes, reply: Reply, client: Client, trip: Trip) -> None:
        answer = read_answer(body)
        if answer is None:
            raise ProtocolError("The engine's answer is not one of its API")
        if answer.failure is not None:
            raise ProtocolError(f"The engine failed: {answer.failure}")
        trip.usage, trip.finish_reason = answer.usage, answer.finish_reason
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
        trip.complete = True
        await client.send(scanner.close(), more=False)
        await reply.drain(DRAIN_S)


def _scan(scanner: StreamScanner, chunk: bytes) -> bytes:
    try:
        return scanner.feed(chunk)
    except EventTooLarge as error:
        raise ProtocolError(f"The engine sent {error}") from error


def _worth_another(error: BackendError, trip: Trip) -> bool:
    """Whether another backend may do better: not where the request itself is what the engine objects to."""
    if isinstance(error, BackendFull):
        return True
    trip.attempts += 1
    refused = isinstance(error, BackendRefused) and error.status < 500
    return not refused and trip.attempts < MAX_ATTEMPTS
