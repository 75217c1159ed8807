"""Sends one request to one engine, and turns every failure into a `GatewayError`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from http import HTTPStatus
from math import inf
from types import TracebackType
from typing import Self

import httpx2

from backends.base import Backend, BackendSpec, Translation, UntranslatableError
from backends.http import redirect_target
from backends.openai_api import is_too_long
from gateway.errors import (
    BackendAway,
    BackendError,
    BackendFull,
    BackendOutOfMemory,
    BackendRedirects,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ClientTooSlow,
    CredentialsRefused,
    GatewayError,
    InvalidRequest,
    ProtocolError,
)
from gateway.protocol.sse import is_event_stream

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer that is not a stream. Such an answer is in memory as a whole before the client gets it."""

PASSED_HEADERS = ("content-disposition", "content-encoding", "content-language", "etag", "last-modified", "retry-after")
"""Headers of an engine's answer that the client gets, besides `Content-Type`. All others stay in the gateway."""

_TRANSPORT_ERRORS = (httpx2.RequestError, OSError)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for an engine, in seconds.

    Attributes:
        connect_s: for a connection.
        first_byte_s: from sending the request to the first byte of the answer.
        idle_s: between two bytes.
        total_s: for the whole answer. This time also passes while the client reads slowly, so that no client
            occupies an engine's memory for ever.
    """

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float = inf

    def with_backend(self, spec: BackendSpec) -> "Timeouts":
        """Return these timeouts with those that a backend overrides."""
        first_byte_s, idle_s, total_s = spec.first_byte_timeout_s, spec.idle_timeout_s, spec.total_timeout_s
        return Timeouts(
            self.connect_s,
            self.first_byte_s if first_byte_s is None else first_byte_s,
            self.idle_s if idle_s is None else idle_s,
            self.total_s if total_s is None else total_s,
        )


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to an engine: path and query under its base URL, headers, and the bytes of the body."""

    path: str
    headers: dict[str, str]
    body: bytes


class UpstreamClient:
    """Sends requests to engines through one transport."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, timeouts: Timeouts) -> None:
        self._transport = transport
        self._timeouts = timeouts

    @asynccontextmanager
    async def send(self, backend: Backend, request: UpstreamRequest) -> AsyncIterator["UpstreamResponse"]:
        """Send a request and yield the answer. At the end of the block, close the connection unless all was read.

        Raises:
            BackendFull: the engine's queue is full.
            BackendOutOfMemory: the engine has too little memory for the request.
            BackendRefused: the engine answered with an error status.
            CredentialsRefused: the engine answered 401 or 403.
            BackendRedirects: the engine answered with a redirect.
            BackendError: the connection failed, or the engine was silent for too long.
            ClientTooSlow: the time for the whole answer is over, and the client was the slow part.
            InvalidRequest: the engine's API cannot express the request.
        """
        translation = _translation(backend, request)
        if translation is not None:
            request = replace(request, path=translation.path, body=translation.body)
        async with _Deadline(self._timeouts.with_backend(backend.spec)) as deadline:
            response = await self._transport.handle_async_request(self._request(backend, request))
            try:
                if 300 <= response.status_code < 400:
                    target = redirect_target(response) or "nowhere"
                    raise BackendRedirects(f"The engine answers {response.status_code}: a redirect to {target}")
                if response.status_code >= 400:
                    error = _refusal(backend, response.status_code, await UpstreamResponse(response, deadline).read())
                    if isinstance(error, BackendRefused):
                        error.retry_after = response.headers.get("retry-after")
                        error.too_long = is_too_long(error.status, error.code, error.message)
                    raise error
                yield UpstreamResponse(response, deadline, translation)
            finally:
                await response.aclose()

    def _request(self, backend: Backend, request: UpstreamRequest) -> httpx2.Request:
        headers = dict(request.headers)
        if backend.spec.api_key:
            headers["authorization"] = f"Bearer {backend.spec.api_key}"
        timeout = {"connect": self._timeouts.connect_s}
        url = _url(backend.spec.url.rstrip("/") + request.path)
        return httpx2.Request("POST", url, headers=headers, content=request.body, extensions={"timeout": timeout})


class UpstreamResponse:
    """The answer of an engine. Its body is read while it arrives."""

    def __init__(
        self, response: httpx2.Response, deadline: "_Deadline", translation: Translation | None = None
    ) -> None:
        self._response = response
        self._deadline = deadline
        self._translation = translation

    @property
    def status(self) -> int:
        """HTTP status, below 400."""
        return self._response.status_code

    @property
    def content_type(self) -> str:
        """`Content-Type` of the engine."""
        return str(self._response.headers.get("content-type", "application/octet-stream"))

    @property
    def passed_headers(self) -> dict[str, str]:
        """Headers of the engine that belong to the answer: those in `PASSED_HEADERS`."""
        headers = self._response.headers
        return {name: str(headers[name]) for name in PASSED_HEADERS if name in headers}

    @property
    def length(self) -> int | None:
        """Size of the body in bytes; None if the engine does not state it."""
        length = "" if self._translation else str(self._response.headers.get("content-length", ""))
        return int(length) if length.isdecimal() else None

    @property
    def is_stream(self) -> bool:
        """Whether the body is an event stream, whatever the request asked for."""
        return is_event_stream(self.content_type)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it arrives. A stream is translated to OpenAI's format."""
        feed = self._translation.feed if self._translation and self.is_stream else None
        async for chunk in self._stream():
            self._deadline.pause()  # the time that the client takes does not count as silence of the engine
            yield feed(chunk) if feed else chunk
            self._deadline.resume()
        self._deadline.pause()  # the body is complete, so the engine owes nothing more

    async def drain(self, within_s: float) -> None:
        """Read and drop the rest of a finished answer, so that its connection can be used again."""
        try:
            async with asyncio.timeout(within_s):
                async for _ in self._stream():
                    continue
        except (TimeoutError, *_TRANSPORT_ERRORS):
            return  # the connection is closed instead

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            ProtocolError: the body is larger than `MAX_ANSWER_BYTES`.
        """
        parts: list[bytes] = []
        size = 0
        async with aclosing(self.chunks()) as chunks:
            async for chunk in chunks:
                parts.append(chunk)
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise ProtocolError(f"The engine's answer is over {MAX_ANSWER_BYTES} bytes")
        body = b"".join(parts)
        return self._translation.whole(body) if self._translation and not self.is_stream else body

    def _stream(self) -> httpx2.AsyncByteStream:
        stream = self._response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise ProtocolError("The transport returned no stream")
        return stream


class _Deadline:
    """Cancels the block when a timeout is over, and turns the errors of the transport into a `GatewayError`.

    Chunks do not move the timer, because that would cost too much. When the timer fires, it checks what has happened
    meanwhile, and starts again if the deadline has moved.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._silent_until_s = now + timeouts.first_byte_s
        self._end_s = now + timeouts.total_s
        self._error: GatewayError | None = None

    def pause(self) -> None:
        """Stop counting silence: the engine has sent something."""
        self._silent_until_s = inf

    def resume(self) -> None:
        """Count silence again: the engine has to send something."""
        self._silent_until_s = self._loop.time() + self._timeouts.idle_s
        if self._silent_until_s < self._timer.when():
            self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        """Fire at the end of the silence; while silence does not count, at the earliest time when it could end."""
        until_s = self._silent_until_s
        if until_s == inf:
            until_s = self._loop.time() + self._timeouts.idle_s
        self._timer = self._loop.call_at(min(until_s, self._end_s), self._check)

    def _check(self) -> None:
        now = self._timer.when()
        if now >= self._end_s and self._silent_until_s == inf:
            self._cancel(ClientTooSlow("The client did not read the answer in time"))
        elif now >= self._end_s:
            self._cancel(BackendTimeout("The engine took too long for the whole answer"))
        elif now >= self._silent_until_s:
            self._cancel(BackendTimeout("The engine was silent for too long"))
        else:
            self._set_timer()

    def _cancel(self, error: GatewayError) -> None:
        self._error = error
        self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task that it can cancel")
        self._task, self._cancelled_before = task, task.cancelling()
        self._set_timer()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # As in asyncio.timeout: if another cancellation came at the same time, the block stays cancelled.
        if self._error is not None:
            ours = self._task.uncancel() <= self._cancelled_before
            if ours and isinstance(exc, asyncio.CancelledError):
                raise self._error from exc
        if isinstance(exc, httpx2.ConnectTimeout):
            raise BackendTimeout("The engine did not accept a connection in time") from exc
        if isinstance(exc, httpx2.ConnectError):
            raise BackendAway("The engine took no connection") from exc
        if isinstance(exc, _TRANSPORT_ERRORS):
            raise BackendUnavailable("The connection to the engine failed") from exc


@lru_cache(maxsize=256)
def _url(text: str) -> httpx2.URL:
    return httpx2.URL(text)


def _translation(backend: Backend, request: UpstreamRequest) -> Translation | None:
    try:
        return backend.translate(request.path, request.body)
    except UntranslatableError as error:
        raise InvalidRequest(str(error), param=error.param) from error


def _refusal(backend: Backend, status: int, body: bytes) -> BackendError:
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return CredentialsRefused(f"The engine refused the gateway's credentials with status {status}")
    error = backend.read_error(status, body)
    out_of_memory = backend.is_out_of_memory(status, error)
    if not out_of_memory and backend.is_queue_full(status, error):
        return BackendFull(error.message)
    if status < 500 and backend.has_failed(status, error):
        if not out_of_memory:
            return ProtocolError(f"The engine failed: {error.message}")
        status = ProtocolError.status
    refused = BackendOutOfMemory if out_of_memory else BackendRefused
    return refused(error.message, status=status, type=error.type, param=error.param, code=error.code)
