"""One call to a static engine for several requests.

The scheduler assigns the requests of a batch together. The first of them that wakes up makes the call, in a task of its
own, with the prompts of all requests that are still waiting. Each request waits for its own result. If a client leaves,
the call continues without it; if all have left, the call is cancelled.

If the call fails, it fails for every request, and each goes back to the queue. There are two exceptions. A refusal may
concern only one of the prompts, so each request is sent alone. If the engine runs out of memory, the scheduler splits
the batch into halves.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from backends.base import Backend
from gateway.dispatch.dispatcher import Ticket
from gateway.errors import BackendError, BackendOutOfMemory, BackendRefused, BatchSplit
from gateway.protocol.batches import BatchResult, batch_body, split_answer
from gateway.protocol.generation_request import GenerationRequest
from gateway.scheduling.messages import Message, OutOfMemory
from gateway.upstream.client import UpstreamClient, UpstreamRequest


@dataclass(slots=True, eq=False)
class BatchRequest:
    """One request that can share a call, while its client waits for the answer."""

    generation: GenerationRequest
    upstream_request: UpstreamRequest
    ticket: Ticket
    _call: "_BatchCall | None" = None
    _result: "asyncio.Future[BatchResult | None] | None" = None

    def join(self, call: "_BatchCall") -> None:
        """Join a call."""
        self._call, self._result = call, asyncio.get_running_loop().create_future()

    @property
    def joined(self) -> bool:
        """Whether the request waits for the result of a call."""
        return self._result is not None

    async def result(self) -> BatchResult | None:
        """Wait for the result; None if the request must be sent alone.

        Raises:
            BackendError: the call failed.
        """
        result = self._result
        if result is None:
            return None
        try:
            return await result
        finally:
            _discard(result)
            if self._result is result:  # another request may have started the next call already
                self._result = None

    def resolve(self, outcome: BatchResult | BaseException | None) -> None:
        """Let `result` return the result or raise the error, if the request still waits; None means: send it alone."""
        if self._result is None or self._result.done():
            return
        if isinstance(outcome, BaseException):
            self._result.set_exception(outcome)
        else:
            self._result.set_result(outcome)

    async def leave(self) -> None:
        """Leave the call; nobody waits for the result any more."""
        if self._result is not None:
            _discard(self._result)
        if self._call is not None:
            await self._call.leave(self)


class BatchCalls:
    """Makes the calls that several requests share.

    Args:
        upstream: sends requests to engines.
        post: passes a message to the scheduler.
        monotonic: returns the time in seconds.
        on_failure: called with the backend's name, the error and the time of sending of every call that failed: once,
            however many requests share the call.
    """

    def __init__(
        self,
        upstream: UpstreamClient,
        post: Callable[[Message], None],
        monotonic: Callable[[], float],
        on_failure: Callable[[str, BackendError, float], None],
    ) -> None:
        self._upstream = upstream
        self._post = post
        self._monotonic = monotonic
        self._on_failure = on_failure
        self._requests: dict[str, BatchRequest] = {}

    @asynccontextmanager
    async def register(
        self, generation: GenerationRequest, upstream_request: UpstreamRequest, ticket: Ticket
    ) -> AsyncGenerator[BatchRequest]:
        """Let a request share calls, until the block ends."""
        request = self._requests[ticket.request.id] = BatchRequest(generation, upstream_request, ticket)
        try:
            yield request
        finally:
            del self._requests[ticket.request.id]
            await request.leave()

    async def result(self, request: BatchRequest, backend: Backend, batch: tuple[str, ...]) -> BatchResult | None:
        """Send the batch, unless another of its requests has sent it, and wait for the request's own result.

        Returns:
            The result; None if the request must be sent alone, because the others have left or the engine refused the
            batch.

        Raises:
            BatchSplit: the engine ran out of memory.
            BackendError: the call failed.
        """
        if not request.joined:
            requests = [self._requests[id] for id in batch if id in self._requests]
            if len(requests) < 2:
                return None
            call = _BatchCall(requests, backend, self._upstream, self._post)
            for each in requests:
                each.join(call)
            self._start(call, backend.spec.name)
        return await request.result()

    def _start(self, call: "_BatchCall", backend: str) -> None:
        sent_s = self._monotonic()
        call.start(lambda error: self._on_failure(backend, error, sent_s))


class _BatchCall:
    """One call for several requests, which are in the order of its prompts."""

    def __init__(
        self, requests: list[BatchRequest], backend: Backend, upstream: UpstreamClient, post: Callable[[Message], None]
    ) -> None:
        self._requests = requests
        self._present = set(requests)
        self._backend = backend
        self._upstream = upstream
        self._post = post
        self._task: asyncio.Task[list[BatchResult] | None] | None = None

    def start(self, on_failure: Callable[[BackendError], None]) -> None:
        """Send the call in a task of its own; call `on_failure` if the engine fails."""
        self._on_failure = on_failure
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._resolve)

    async def leave(self, request: BatchRequest) -> None:
        """Remove a request; cancel the call if it was the last one."""
        self._present.discard(request)
        if not self._present and self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> list[BatchResult] | None:
        """Return the result of each request; None if each must be sent alone."""
        try:
            async with self._upstream.send(self._backend, self._request()) as response:
                body = await response.read()
        except BackendOutOfMemory as error:
            if len(self._present) < 2:
                return None  # one request cannot be split
            self._split()
            raise BatchSplit(error.message) from error
        except BackendRefused as error:
            if error.status < 500:
                return None
            raise
        prompt_tokens = [request.ticket.request.prompt_tokens for request in self._requests]
        return split_answer(body, prompt_tokens, self._requests[0].generation.answer_limit)

    def _request(self) -> UpstreamRequest:
        """Return the first request with the prompts of all, without streaming."""
        first = self._requests[0].upstream_request
        headers = {name: value for name, value in first.headers.items() if name != "accept"}
        return UpstreamRequest(first.path, headers, batch_body([request.generation for request in self._requests]))

    def _split(self) -> None:
        """Ask the scheduler to split the batch."""
        present = [request for request in self._requests if request in self._present]
        for request in present:
            request.ticket.reset()
        self._post(OutOfMemory(tuple(request.ticket.request.id for request in present)))

    def _resolve(self, task: "asyncio.Task[list[BatchResult] | None]") -> None:
        if task.cancelled():
            return  # all requests have left
        failure = task.exception()
        if isinstance(failure, BackendError):
            self._on_failure(failure)
        results = None if failure else task.result()
        for at, request in enumerate(self._requests):
            request.resolve(failure or (results[at] if results else None))


def _discard(result: "asyncio.Future[BatchResult | None]") -> None:
    """Cancel the future, or read its error, so that asyncio does not warn that nobody did."""
    if not result.cancel() and not result.cancelled():
        result.exception()
