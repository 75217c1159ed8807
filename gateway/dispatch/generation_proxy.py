"""Sends one generation to engines, from the queue to the last byte of its answer.

While no byte has reached the client, the gateway can handle a failure: the request returns to its place in the queue
and goes to another backend. After the first byte the client gets the error.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, replace

from cachetools import LRUCache

from backends.base import Backend
from gateway.dispatch.batch_call import BatchCalls, BatchRequest
from gateway.dispatch.context import Client, RequestContext
from gateway.dispatch.dispatcher import Assignment, Dispatcher, Ticket
from gateway.dispatch.retry_budget import RetryBudget, Suspect
from gateway.errors import (
    BackendAway,
    BackendError,
    BackendFull,
    BackendRefused,
    BackendUnavailable,
    BatchSplit,
    EventTooLarge,
    ProtocolError,
    QueueTimeout,
)
from gateway.fleet.pool import BackendPool
from gateway.protocol.answers import is_absent
from gateway.protocol.batches import BatchResult
from gateway.protocol.generation_request import GenerationRequest
from gateway.protocol.sse import StreamScanner
from gateway.scheduling.messages import Request
from gateway.upstream.client import UpstreamClient, UpstreamRequest, UpstreamResponse

MAX_BACKENDS = 1024
"""Most backends of which the gateway remembers that they refuse `stream_options`."""

DRAIN_S = 0.5
"""How long the gateway waits for the end of a stream after `[DONE]` before it closes the connection."""


@dataclass(frozen=True, slots=True)
class _Run:
    """One request while the proxy works on it; `batch_request` is None if the request can only be sent alone."""

    context: RequestContext
    generation: GenerationRequest
    upstream_request: UpstreamRequest
    client: Client
    ticket: Ticket
    batch_request: BatchRequest | None
    suspect: "Suspect"


class GenerationProxy:
    """Sends generations to the engines that the dispatcher assigns, and the answers to the clients.

    Args:
        dispatcher: assigns a backend to each request.
        upstream: sends requests to engines.
        pool: the backends and their health.
        monotonic: returns the time in seconds.
        on_failure: called with the backend's name and the error of every attempt that failed.
        budget: limits retries.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        upstream: UpstreamClient,
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
        self._without_usage: LRUCache[str, Backend] = LRUCache(MAX_BACKENDS)

    async def run(
        self, context: RequestContext, request: Request, upstream_request: UpstreamRequest, client: Client
    ) -> None:
        """Schedule the request, send it, and send the answer to the client.

        Args:
            context: of the request, whose body is decoded; filled in as the request proceeds, also if it fails.
            request: for the scheduler.
            upstream_request: for the engine.
            client: gets the answer.

        Raises:
            GatewayError: the request was dropped from the queue, refused by the engine, or failed. `client.started`
                tells whether the client has got a part of an answer.
        """
        generation = context.generation
        if generation is None:
            raise ValueError("context.generation: the body must be decoded before the request is sent")
        self._budget.note_request(context.arrival_s)
        with self._dispatcher.submit(request) as ticket:
            batchable: AbstractAsyncContextManager[BatchRequest | None] = nullcontext()
            if request.batch_key is not None:
                batchable = self._batches.register(generation, upstream_request, ticket)
            async with batchable as batch_request:
                await self._run(
                    _Run(
                        context,
                        generation,
                        upstream_request,
                        client,
                        ticket,
                        batch_request,
                        Suspect(context.fingerprint),
                    )
                )

    async def _run(self, run: _Run) -> None:
        """Try one backend after another until an answer is complete or the request must not be sent again."""
        failure: BackendError | None = None
        while True:
            try:
                assignment = await run.ticket.assignment()
            except (BackendUnavailable, QueueTimeout) as dropped:  # the failure before it is the reason
                raise failure or dropped from dropped
            run.context.backend, run.context.dispatched_s = assignment.backend, self._monotonic()
            try:
                return await self._attempt(assignment, run)
            except BackendError as error:
                self._on_failure(assignment.backend, error)
                if run.client.started or not self._may_retry(error, run.context):
                    raise
                failure = failure if isinstance(error, BackendFull) else error
                if not isinstance(error, BatchSplit):
                    run.ticket.return_to_queue(
                        full=isinstance(error, BackendFull),
                        too_long=_is_too_long(error),
                        away=isinstance(error, BackendAway),
                    )

    async def _attempt(self, assignment: Assignment, run: _Run) -> None:
        backend, sent_s = self._pool.backend(assignment.backend), self._monotonic()
        if assignment.batch and run.batch_request is not None:
            result = await self._batches.result(run.batch_request, backend, assignment.batch)
            if result is not None:
                await self._send_batch_result(result, run)
                return
        try:
            await self._attempt_alone(assignment, backend, run)
        except BackendError as error:  # a batch call reports its failure itself, once for all of its requests
            self._pool.record_failure(assignment.backend, error, sent_s, run.context.fingerprint)
            run.suspect.note(assignment.backend, error, self._pool)
            raise
        run.suspect.note_success(self._monotonic(), self._pool)

    async def _attempt_alone(self, assignment: Assignment, backend: Backend, run: _Run) -> None:
        """Send the request; send it again without our request for token counts if the engine does not know that."""
        name = backend.spec.name
        asks_usage = run.generation.hides_usage and self._without_usage.get(name) is not backend
        try:
            await self._exchange(assignment, backend, run, asks_usage=asks_usage)
        except BackendRefused as error:
            if not asks_usage or not _may_refuse_usage(error):
                raise
            await self._exchange(assignment, backend, run, asks_usage=False)

    async def _exchange(self, assignment: Assignment, backend: Backend, run: _Run, *, asks_usage: bool) -> None:
        generation, request = run.generation, run.upstream_request
        rank = assignment.rank if backend.spec.priority and generation.takes_priority else None
        hides_usage = generation.hides_usage and asks_usage
        if rank is not None or hides_usage is not generation.hides_usage:
            request = replace(request, body=generation.upstream_body(rank, asks_usage=asks_usage))
        async with self._upstream.send(backend, request) as response:
            if hides_usage is not generation.hides_usage:
                self._without_usage[backend.spec.name] = backend
            if not response.is_stream:
                return await self._send_whole(await response.read(), response, run)
            scanner = run.context.api_format.scanner(hide_usage=hides_usage, answers=generation.sequences)
            async with aclosing(response.chunks()) as chunks:
                return await self._send_stream(scanner, chunks, response, run)

    def _may_retry(self, error: BackendError, context: RequestContext) -> bool:
        if isinstance(error, (BackendFull, BatchSplit)):  # the engine did not fail, so this is not a retry
            return True
        if _is_too_long(error) and context.backend and context.generation:
            refused_again = not self._pool.serves_longer(context.generation.model, context.backend)
            return not refused_again and self._budget.allows_another_place(context, self._monotonic())
        return self._budget.allows(error, context, self._monotonic())

    async def _send_batch_result(self, result: BatchResult, run: _Run) -> None:
        """Send the request's part of a batch's answer, as a stream if the client asked for one."""
        context, client = run.context, run.client
        context.usage, context.finish_reason = result.usage, result.finish_reason
        run.ticket.finish(context.output_tokens or None)
        self._record_answer(context, complete=True)
        if run.generation.stream:
            body = result.stream(with_usage=run.generation.includes_usage)
            context.first_byte_s = self._monotonic()
            await client.start(200, "text/event-stream; charset=utf-8", length=None)
        else:
            body = result.whole()
            await client.start(200, "application/json", length=len(body))
        context.complete = True
        await client.send(body, more=False)

    async def _send_whole(self, body: bytes, response: UpstreamResponse, run: _Run) -> None:
        context, client = run.context, run.client
        if is_absent(body):
            raise ProtocolError("The engine sent no answer")
        answer = context.api_format.read_answer(body)
        if answer.failure is not None:
            raise ProtocolError(f"The engine failed: {answer.failure}")
        context.usage, context.finish_reason = answer.usage, answer.finish_reason
        run.ticket.finish(context.output_tokens or None)
        self._record_answer(context, complete=True)
        context.passed_headers = response.passed_headers
        await client.start(response.status, response.content_type, length=len(body))
        context.complete = True
        await client.send(body, more=False)

    async def _send_stream(
        self, scanner: StreamScanner, chunks: AsyncGenerator[bytes, None], response: UpstreamResponse, run: _Run
    ) -> None:
        context, ticket = run.context, run.ticket
        async for chunk in chunks:
            await self._forward(_scan(scanner, chunk), scanner, response, run)
            if scanner.done:
                break
            ticket.report_progress(scanner.events)
        tail = scanner.close()
        if scanner.succeeded or scanner.error is not None:
            await self._forward(tail, scanner, response, run)
        if not scanner.succeeded:
            raise BackendUnavailable("The engine's stream ended before the answer was complete")
        ticket.finish(context.output_tokens or None)
        self._record_answer(context, complete=True)
        context.complete = True
        await run.client.send(b"", more=False)
        await response.drain(DRAIN_S)

    async def _forward(self, events: bytes, scanner: StreamScanner, response: UpstreamResponse, run: _Run) -> None:
        """Send events to the client once the answer has begun: comments before it are no reason to keep an engine."""
        context, client = run.context, run.client
        context.events, context.usage = scanner.events, scanner.usage
        context.finish_reason = scanner.finish_reason
        if events and scanner.begun:
            if not client.started:
                context.first_byte_s = self._monotonic()
                self._record_answer(context, complete=False)
                context.passed_headers = response.passed_headers
                await client.start(response.status, response.content_type, length=None)
            await client.send(events, more=True)
        if scanner.error is not None:
            raise ProtocolError(f"The engine failed: {scanner.error}")

    def _record_answer(self, context: RequestContext, *, complete: bool) -> None:
        """Tell the pool that the backend answers."""
        if context.backend is not None and context.dispatched_s is not None:
            self._pool.record_answer(
                context.backend, context.dispatched_s, complete=complete, fingerprint=context.fingerprint
            )


def _scan(scanner: StreamScanner, chunk: bytes) -> bytes:
    try:
        return scanner.feed(chunk)
    except EventTooLarge as error:
        raise ProtocolError(f"The engine sent {error}") from error


def _may_refuse_usage(error: BackendRefused) -> bool:
    """Return whether an engine may have refused the request because it does not know `stream_options`."""
    named = "stream_options" in error.message or "stream_options" in (error.param or "")
    return error.status == 422 or (error.status == 400 and named)


def _is_too_long(error: BackendError) -> bool:
    """Return whether the engine refused the request as longer than its context."""
    return isinstance(error, BackendRefused) and error.too_long
