"""One connection to an engine, which carries one request at a time.

Nothing reads ahead of its consumer: over `HIGH_WATER_BYTES` of an answer that nobody has taken, the socket is left
alone, and the engine feels that its reader is slow.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import httpx2

from gateway.errors import NotHttpError
from gateway.upstream.http1 import Answer

HIGH_WATER_BYTES = 64 * 1024
"""Of an answer's body, held for its reader, before the socket is read no further."""

PART_BYTES = 256 * 1024
"""A longer body is sent in parts of this size: all at once, it would stop the event loop and be held twice."""


class Connection(asyncio.Protocol):
    """A connection, idle or with one exchange on it.

    Attributes:
        answer: the last request's.
        heard: anything has come since that request was sent.
        idle_since_s: when it was last put aside, in the loop's seconds.

    Args:
        on_end: told when the connection ends while it idles, so that nobody takes it.
    """

    def __init__(self, on_end: Callable[["Connection"], None]) -> None:
        self.answer = Answer()
        self.heard = False
        self.idle_since_s = 0.0
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._sent = False
        self._reads = True
        self._writes = True
        self._error: httpx2.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def ask(self, head: bytes, body: bytes) -> Answer:
        """Send a request and wait for the head of its answer.

        Args:
            head: request line and headers, with the empty line that ends them.
            body: as long as the headers say.

        Raises:
            httpx2.TransportError: the connection is lost, or what comes is not HTTP.
        """
        self.answer, self.heard = Answer(), False
        self._busy, self._sent = True, False
        if len(body) <= PART_BYTES:
            self._socket.write(head + body)
            self._sent = True
        else:
            await self._write_in_parts(head, body)
        while not self.answer.status:
            await self._event()
        return self.answer

    async def next_part(self) -> bytes:
        """Return what has come of the answer's body; nothing at its end.

        Raises:
            httpx2.TransportError: the connection is lost before the end, or what comes is not HTTP.
        """
        answer = self.answer
        while not answer.size:
            if answer.complete:
                return b""
            await self._event()
        part = answer.take()
        if not self._reads:
            self._reads = True
            self._socket.resume_reading()
        return part

    def put_aside(self) -> bool:
        """End the exchange. Returns whether another may begin: all was sent, all has come and was read, none leaves."""
        answer = self.answer
        whole = self._sent and answer.complete and not answer.size
        self.idle_since_s = self._loop.time()
        self._busy = False
        if whole and answer.keeps and not self._socket.is_closing():
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close at once, whatever is on its way; who still waits for it gets an error."""
        self._busy = False
        self._fail(httpx2.ReadError("the connection was closed on this side"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        self._socket = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take in what came."""
        if not self._busy:  # said without being asked
            self._socket.abort()
            return
        self.heard = True
        try:
            self.answer.feed(data)
        except NotHttpError as error:
            self._fail(httpx2.RemoteProtocolError(str(error)))
            return
        if self.answer.size > HIGH_WATER_BYTES and self._reads:
            self._reads = False
            self._socket.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take in that nothing more will come."""
        if not self._busy:
            self._on_end(self)
        elif exc is None and self.answer.end():
            self._wake()
        else:
            self._fail(httpx2.ReadError(str(exc) if exc else "the connection was closed before the answer's end"))

    def pause_writing(self) -> None:
        """Hear that the engine reads slowly."""
        self._writes = False

    def resume_writing(self) -> None:
        """Hear that it has caught up."""
        self._writes = True
        self._wake()

    async def _write_in_parts(self, head: bytes, body: bytes) -> None:
        """Write as fast as the engine reads; stop where its answer comes first, which then is a refusal."""
        self._socket.write(head)
        view = memoryview(body)
        for at in range(0, len(body), PART_BYTES):
            self._socket.write(view[at : at + PART_BYTES])
            while not (self._writes or self.answer.status):
                await self._event()
            if self.answer.status:
                return
        self._sent = True

    async def _event(self) -> None:
        """Wait until something has happened; an error of the connection's is told when all before it was taken."""
        if self._error is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._error is not None and not self.answer.size:
            raise self._error

    def _fail(self, error: httpx2.TransportError) -> None:
        self._error = self._error or error
        self._socket.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
