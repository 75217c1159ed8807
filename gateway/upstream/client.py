"""One request on its way to one engine: opened, read, closed, with every failure named."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from types import TracebackType
from typing import Self

import httpx2

from backends.base import Backend, BackendSpec, Translation, UntranslatableError
from gateway.errors import (
    BackendError,
    BackendFull,
    BackendOutOfMemory,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ClientTooSlow,
    GatewayError,
    InvalidRequest,
    ProtocolError,
)

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer that is not a stream: it is held whole before the client gets it."""

_TRANSPORT_ERRORS = (httpx2.RequestError, OSError)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds: for a connection, for the first byte, between two bytes, for the whole answer.

    The whole answer's time runs on while its client reads slowly: nobody holds an engine's memory for ever.
    """

    connect_s: float
    first_byte_s: float
    idle_s: float
    total_s: float = inf

    def with_backend(self, spec: BackendSpec) -> "Timeouts":
        """Return the patience with one backend, whose own time-outs come first."""
        first_byte_s, idle_s, total_s = spec.first_byte_timeout_s, spec.idle_timeout_s, spec.total_timeout_s
        return Timeouts(
            self.connect_s,
            self.first_byte_s if first_byte_s is None else first_byte_s,
            self.idle_s if idle_s is None else idle_s,
            self.total_s if total_s is None else total_s,
        )


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """What is sent: path and query under the engine's base URL, headers, the body's bytes."""

    path: str
    headers: dict[str, str]
    body: bytes


class Upstream:
    """Sends calls through one transport."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, patience: Timeouts) -> None:
        self._transport = transport
        self._patience = patience

    @asynccontextmanager
    async def send(self, backend: Backend, request: UpstreamRequest) -> AsyncIterator["UpstreamResponse"]:
        """Send the request; leaving the context closes the connection unless the answer was read whole.

        Raises:
            BackendFull: the engine's queue is full.
            BackendOutOfMemory: it had no memory for what it was sent.
            BackendRefused: an error status, in the engine's own words.
            BackendError: no connection, a broken one, silence.
            ClientTooSlow: all of the time for the answer went by, and it was not the engine who was waited for.
            InvalidRequest: the engine has no words for it.
        """
        translation = _translation(backend, request)
        if translation is not None:
            request = replace(request, path=translation.path, body=translation.body)
        async with _Deadline(self._patience.with_backend(backend.spec)) as patient:
            response = await self._transport.handle_async_request(self._request(backend, request))
            try:
                if response.status_code >= 400:
                    raise _refusal(backend, response.status_code, await UpstreamResponse(response, patient).read())
                yield UpstreamResponse(response, patient, translation)
            finally:
                await response.aclose()

    def _request(self, backend: Backend, request: UpstreamRequest) -> httpx2.Request:
        headers = dict(request.headers)
        if backend.spec.api_key:
            headers["authorization"] = f"Bearer {backend.spec.api_key}"
        timeout = {"connect": self._patience.connect_s}
        url = _url(backend.spec.url.rstrip("/") + request.path)
        return httpx2.Request("POST", url, headers=headers, content=request.body, extensions={"timeout": timeout})


class UpstreamResponse:
    """An engine's answer, as it comes."""

    def __init__(self, response: httpx2.Response, patient: "_Deadline", translation: Translation | None = None) -> None:
        self._response = response
        self._patient = patient
        self._translation = translation

    @property
    def status(self) -> int:
        """HTTP status, below 400."""
        return self._response.status_code

    @property
    def content_type(self) -> str:
        """As the engine said it."""
        return str(self._response.headers.get("content-type", "application/octet-stream"))

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the engine said how many there are."""
        told = "" if self._translation else str(self._response.headers.get("content-length", ""))
        return int(told) if told.isdecimal() else None

    @property
    def is_stream(self) -> bool:
        """Whether this is an event stream, whatever was asked for."""
        return self.content_type.startswith("text/event-stream")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it is read; of a stream, in OpenAI's words."""
        feed = self._translation.feed if self._translation and self.is_stream else None
        async for chunk in self._stream():
            self._patient.pause()  # a client that reads slowly is no silence of the engine's
            yield feed(chunk) if feed else chunk
            self._patient.resume()
        self._patient.pause()  # all has come: what its reader does now is no silence of the engine's

    async def drain(self, within_s: float) -> None:
        """Read to the end an answer that has nothing more to say, so that its connection can serve again."""
        try:
            async with asyncio.timeout(within_s):
                async for _ in self._stream():
                    continue
        except (TimeoutError, *_TRANSPORT_ERRORS):
            return  # it is closed instead

    async def read(self) -> bytes:
        """Read the whole body.

        Raises:
            ProtocolError: over `MAX_ANSWER_BYTES`.
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
            raise ProtocolError("The transport gave no stream")
        return stream


class _Deadline:
    """Bounds the silence within its context, and says in our own terms what went wrong in it.

    No timer is moved with every chunk: one that fires looks at what has come since it was set, and is set anew.
    """

    def __init__(self, patience: Timeouts) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        self._silent_until_s = now + patience.first_byte_s
        self._last_s = now + patience.total_s
        self._gave_up: GatewayError | None = None

    def pause(self) -> None:
        """Stop the clock: the engine has sent something."""
        self._silent_until_s = inf

    def resume(self) -> None:
        """Start the clock again: it is the engine's turn."""
        self._silent_until_s = self._loop.time() + self._patience.idle_s
        if self._silent_until_s < self._timer.when():
            self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        """Fire when the silence is too long; while the clock stands, when it could be at the earliest."""
        until_s = self._silent_until_s
        if until_s == inf:
            until_s = self._loop.time() + self._patience.idle_s
        self._timer = self._loop.call_at(min(until_s, self._last_s), self._look)

    def _look(self) -> None:
        now = self._timer.when()
        if now >= self._last_s and self._silent_until_s == inf:
            self._give_up(ClientTooSlow("The answer was not read in time"))
        elif now >= self._last_s:
            self._give_up(BackendTimeout("The engine took too long for the whole answer"))
        elif now >= self._silent_until_s:
            self._give_up(BackendTimeout("The engine was silent for too long"))
        else:
            self._set_timer()

    def _give_up(self, error: GatewayError) -> None:
        self._gave_up = error
        self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("patience needs a task to cancel")
        self._task, self._cancelled_before = task, task.cancelling()
        self._set_timer()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        # As in asyncio.timeout: a cancellation from elsewhere, at the same time, stays one.
        if self._gave_up is not None:
            ours = self._task.uncancel() <= self._cancelled_before
            if ours and isinstance(exc, asyncio.CancelledError):
                raise self._gave_up from exc
        if isinstance(exc, httpx2.ConnectTimeout):
            raise BackendTimeout("The engine took no connection in time") from exc
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
