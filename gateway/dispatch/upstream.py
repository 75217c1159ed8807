"""One request on its way to one engine: opened, read, closed, with every failure named."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp
import httpx2

from backends.base import Backend
from gateway.errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable, ProtocolError

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer that is not a stream: it is held whole before the client gets it."""


_TRANSPORT_ERRORS = (httpx2.RequestError, aiohttp.ClientError, OSError)
"""aiohttp's own come through where httpx-aiohttp has no name for them: an engine that does not speak HTTP."""


class BackendFull(BackendError):
    """The engine's own queue is full: not an answer for the client, but for our queue."""

    status = 503
    code = "backend_full"


class BackendOutOfMemory(BackendRefused):
    """The engine ran out of memory; less at once may go through."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, for the first byte, between two bytes."""

    connect_s: float
    first_byte_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent: path and query under the engine's base URL, headers, the body's bytes."""

    path: str
    headers: dict[str, str]
    body: bytes


class Upstream:
    """Sends calls through one transport."""

    def __init__(self, transport: httpx2.AsyncBaseTransport, patience: Patience) -> None:
        self._transport = transport
        self._patience = patience

    @asynccontextmanager
    async def send(self, backend: Backend, call: Call) -> AsyncIterator["Reply"]:
        """Send the call; leaving the context closes the connection unless the answer was read whole.

        Raises:
            BackendFull: the engine's queue is full.
            BackendOutOfMemory: it had no memory for what it was sent.
            BackendRefused: an error status, in the engine's own words.
            BackendError: no connection, a broken one, silence.
        """
        async with _Patient(self._patience.first_byte_s, self._patience.idle_s) as patient:
            response = await self._transport.handle_async_request(self._request(backend, call))
            try:
                reply = Reply(response, patient)
                if response.status_code >= 400:
                    raise _refusal(backend, response.status_code, await reply.read())
                yield reply
            finally:
                await response.aclose()

    def _request(self, backend: Backend, call: Call) -> httpx2.Request:
        headers = dict(call.headers)
        if backend.spec.api_key:
            headers["authorization"] = f"Bearer {backend.spec.api_key}"
        timeout = {"connect": self._patience.connect_s}
        url = backend.spec.url.rstrip("/") + call.path
        return httpx2.Request("POST", url, headers=headers, content=call.body, extensions={"timeout": timeout})


class Reply:
    """An engine's answer, as it comes."""

    def __init__(self, response: httpx2.Response, patient: "_Patient") -> None:
        self._response = response
        self._patient = patient

    @property
    def status(self) -> int:
        """HTTP status, below 400."""
        return self._response.status_code

    @property
    def content_type(self) -> str:
        """As the engine said it."""
        return str(self._response.headers.get("content-type", "application/octet-stream"))

    @property
    def is_stream(self) -> bool:
        """Whether this is an event stream, whatever was asked for."""
        return self.content_type.startswith("text/event-stream")

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it is read."""
        async for chunk in self._stream():
            self._patient.pause()  # a client that reads slowly is no silence of the engine's
            yield chunk
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
        return b"".join(parts)

    def _stream(self) -> httpx2.AsyncByteStream:
        stream = self._response.stream
        if not isinstance(stream, httpx2.AsyncByteStream):
            raise ProtocolError("The transport gave no stream")
        return stream


class _Patient:
    """Bounds the silence within its context, and says in our own terms what went wrong in it."""

    def __init__(self, first_byte_s: float, idle_s: float) -> None:
        self._idle_s = idle_s
        self._timeout = asyncio.timeout(first_byte_s)

    def pause(self) -> None:
        """Stop the clock: the engine has sent something."""
        self._timeout.reschedule(None)

    def resume(self) -> None:
        """Start the clock again: it is the engine's turn."""
        self._timeout.reschedule(asyncio.get_running_loop().time() + self._idle_s)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(exc_type, exc, traceback)
        except TimeoutError as error:
            raise BackendTimeout("The engine was silent for too long") from error
        if isinstance(exc, _TRANSPORT_ERRORS):
            # httpx-aiohttp calls a dropped connection a time-out: what aiohttp called it decides
            if isinstance(exc.__cause__, TimeoutError):
                raise BackendTimeout("The engine took no connection in time") from exc
            raise BackendUnavailable("The connection to the engine failed") from exc


def _refusal(backend: Backend, status: int, body: bytes) -> BackendError:
    error = backend.read_error(status, body)
    out_of_memory = backend.is_out_of_memory(status, error)
    if not out_of_memory and backend.is_queue_full(status, error):
        return BackendFull(error.message)
    refused = BackendOutOfMemory if out_of_memory else BackendRefused
    return refused(error.message, status=status, type=error.type, param=error.param, code=error.code)
