"""One connection to an engine. It carries one request at a time.

Reading follows the consumer: when more than `HIGH_WATER_BYTES` of a body are buffered, the socket is not read, and TCP
slows the engine down.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httpx2

from gateway.errors import NotHttpError
from gateway.upstream.http1 import Http1Response

HIGH_WATER_BYTES = 64 * 1024
"""Largest part of a body that is buffered before reading pauses."""

PART_BYTES = 256 * 1024
"""A larger request body is written in parts of this size. One write would block the event loop and copy the body."""


class EngineConnection(asyncio.Protocol):
    """A connection that is idle, or carries one request and its response.

    Args:
        on_idle_close: called when the connection closes while it is idle.

    Attributes:
        response: response to the last request.
        received_any: whether any byte has arrived since that request was sent.
        idle_since_s: when the connection became idle, in seconds of the event loop's clock.
    """

    def __init__(self, on_idle_close: Callable[["EngineConnection"], None]) -> None:
        self.response = Http1Response()
        self.received_any = False
        self.idle_since_s = 0.0
        self._on_idle_close = on_idle_close
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._request_sent = False
        self._may_read = True
        self._may_write = True
        self._error: httpx2.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def send(self, head: bytes, body: bytes) -> Http1Response:
        """Send a request and wait for the headers of its response.

        Args:
            head: request line and headers, including the empty line at their end.
            body: the body; its size is the one that the headers state.

        Raises:
            httpx2.TransportError: the connection is lost, or the response is not HTTP.
        """
        self.response, self.received_any = Http1Response(), False
        self._busy, self._request_sent = True, False
        if len(body) <= PART_BYTES:
            self._socket.write(head + body)
            self._request_sent = True
        else:
            await self._write_in_parts(head, body)
        while not self.response.status:
            await self._event()
        return self.response

    async def next_part(self) -> bytes:
        """Return the next part of the response's body; empty at its end.

        Raises:
            httpx2.TransportError: the connection is lost before the end, or the response is not HTTP.
        """
        response = self.response
        while not response.buffered_bytes:
            if response.complete:
                return b""
            await self._event()
        part = response.take()
        if not self._may_read:
            self._may_read = True
            self._socket.resume_reading()
        return part

    def release(self) -> bool:
        """End the exchange. Return whether the connection can carry another request; otherwise close it."""
        response = self.response
        finished = self._request_sent and response.complete and not response.buffered_bytes
        self.idle_since_s = self._loop.time()
        self._busy = False
        if finished and response.keep_alive and not self._socket.is_closing():
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close the connection at once. Whoever waits for its response gets an error."""
        self._busy = False
        self._fail(httpx2.ReadError("the gateway closed the connection"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Store the socket."""
        self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Parse bytes from the engine."""
        if not self._busy:  # no request is open, so these bytes belong to nothing
            self._socket.abort()
            return
        self.received_any = True
        try:
            self.response.feed(data)
        except NotHttpError as error:
            self._fail(httpx2.RemoteProtocolError(str(error)))
            return
        if self.response.buffered_bytes > HIGH_WATER_BYTES and self._may_read:
            self._may_read = False
            self._socket.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        if not self._busy:
            self._on_idle_close(self)
        elif exc is None and self.response.close():
            self._wake()
        else:
            self._fail(httpx2.ReadError(str(exc) if exc else "the engine closed the connection too early"))

    def pause_writing(self) -> None:
        """Stop writing, because the engine reads slowly."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Write again."""
        self._may_write = True
        self._wake()

    async def _write_in_parts(self, head: bytes, body: bytes) -> None:
        """Write as fast as the engine reads. Stop if the response comes first, because it is then a refusal."""
        self._socket.write(head)
        view = memoryview(body)
        for at in range(0, len(body), PART_BYTES):
            self._socket.write(view[at : at + PART_BYTES])
            while not (self._may_write or self.response.status):
                await self._event()
            if self.response.status:
                return
        self._request_sent = True

    async def _event(self) -> None:
        """Wait for the next event. Raise the connection's error after all buffered bytes were taken."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self.response.buffered_bytes:
            raise self._error

    def _fail(self, error: httpx2.TransportError) -> None:
        self._error = self._error or error
        self._socket.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
