"""The HTTP/1.1 client of all benchmarks: GET and POST over kept connections.

It shares no code with the gateway, because the gateway's cost is measured with it. It does only what a benchmark needs,
because the client takes CPU time from the processes beside it: llhttp (through httptools) parses the answers, and an
asyncio protocol holds one request at a time. `docs/performance.md` compares its cost with that of other clients.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from types import MappingProxyType
from typing import Any, cast
from urllib.parse import urlsplit

import httptools

KEPT_S = 2.0
"""How long an idle connection is kept: less than any server keeps it, so that no server closes one that is in use."""

JSON_TYPE = {"content-type": "application/json"}


class LoadError(RuntimeError):
    """A request got no answer, or an incomplete one."""


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """A complete answer, with the seconds from sending the request to its first and to its last byte."""

    status: int
    body: bytes
    ttft_s: float
    e2e_s: float


class Response:
    """An answer whose head has arrived. Iterate over it to read the body as it arrives.

    Args:
        connection: the connection that receives it.
    """

    def __init__(self, connection: "_Connection") -> None:
        self.status = connection.status
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes that arrived since the previous turn, until the body ends."""
        while data := await self.read_some():
            yield data

    async def read_some(self) -> bytes:
        """Wait for bytes of the body and return them; return no bytes at its end."""
        return await self._connection.read()

    async def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join([data async for data in self])

    async def json(self) -> Any:  # noqa: ANN401 - any JSON value
        """Return the decoded body of a successful answer.

        Raises:
            LoadError: the status is not 200.
        """
        return json.loads(await self.successful())

    async def successful(self) -> bytes:
        """Return the body of a successful answer.

        Raises:
            LoadError: the status is not 200.
        """
        body = await self.read()
        if self.status != 200:
            raise LoadError(f"status {self.status}: {body[:200].decode(errors='replace')}")
        return body


@dataclass(slots=True)
class LoadClient:
    """Sends requests. Each request in flight has a connection of its own.

    Args:
        timeout_s: the longest time from sending a request to the last byte of its answer.
    """

    timeout_s: float
    _idle: dict[tuple[str, int], list["_Connection"]] = field(default_factory=dict)

    async def timed_post(self, url: str, body: bytes, headers: Mapping[str, str]) -> TimedAnswer:
        """Send a JSON body and return the whole answer with its times. Raises like `post`."""
        start_s = perf_counter()  # the loop's own clock has a resolution of 1 ms under uvloop
        ttft_s, parts = 0.0, []
        async with self.post(url, body, headers) as response:
            async for data in response:
                ttft_s = ttft_s or perf_counter() - start_s
                parts.append(data)
        e2e_s = perf_counter() - start_s
        return TimedAnswer(response.status, b"".join(parts), ttft_s or e2e_s, e2e_s)

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str] = MappingProxyType({})
    ) -> AbstractAsyncContextManager[Response]:
        """Send a JSON body, and enter the block once the head of the answer has arrived.

        Leaving the block before the body has ended closes the connection, which aborts the request.

        Raises:
            LoadError: the server does not answer, or closes the connection in the middle of its answer.
            TimeoutError: the block took longer than `timeout_s`.
        """
        return self._send("POST", url, body, JSON_TYPE | dict(headers))

    def get(self, url: str) -> AbstractAsyncContextManager[Response]:
        """Send a GET request, and enter the block once the head of the answer has arrived. Raises like `post`."""
        return self._send("GET", url, b"", {})

    @asynccontextmanager
    async def _send(self, method: str, url: str, body: bytes, headers: dict[str, str]) -> AsyncGenerator[Response]:
        parts = urlsplit(url)
        origin = (parts.hostname or "", parts.port or 80)
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        path = f"{parts.path}?{parts.query}" if parts.query else parts.path
        head = f"{method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{fields}content-length: {len(body)}\r\n\r\n"
        async with asyncio.timeout(self.timeout_s):
            connection = self._kept(origin) or await _connect(origin)
            try:
                connection.send(head.encode() + body)
                await connection.head()
                yield Response(connection)
            finally:
                self._release(origin, connection)

    def _kept(self, origin: tuple[str, int]) -> "_Connection | None":
        now_s = asyncio.get_running_loop().time()
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if connection.is_open and now_s - connection.idle_since_s < KEPT_S:
                return connection
            connection.close()
        return None

    def _release(self, origin: tuple[str, int], connection: "_Connection") -> None:
        """Keep the connection if its answer is complete, or close it."""
        if connection.is_reusable:
            connection.idle_since_s = asyncio.get_running_loop().time()
            self._idle.setdefault(origin, []).append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all idle connections."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()


@asynccontextmanager
async def load_client(timeout_s: float) -> AsyncGenerator[LoadClient]:
    """Open a client, and close its connections when the block ends."""
    client = LoadClient(timeout_s)
    try:
        yield client
    finally:
        client.close()


async def _connect(origin: tuple[str, int]) -> "_Connection":
    try:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, *origin)
    except OSError as error:
        raise LoadError(f"cannot connect to {origin[0]}:{origin[1]}: {error}") from error
    return connection


class _Connection(asyncio.Protocol):
    """One connection with one request at a time. The parser calls the methods whose names begin with `on_`."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self.status = 0
        self._data: list[bytes] = []
        self._ended = True
        self._keeps_alive = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        return not self._closed

    @property
    def is_reusable(self) -> bool:
        """Whether the last answer is complete and the server keeps the connection."""
        return self._ended and self._keeps_alive and not self._closed

    def send(self, request: bytes) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self.status, self._data, self._ended = 0, [], False
        self._transport.write(request)

    async def head(self) -> None:
        while not self.status:
            await self._arrival()

    async def read(self) -> bytes:
        """Return the bytes of the body that have arrived, and no bytes at its end."""
        while not self._data and not self._ended:
            await self._arrival()
        data, self._data = b"".join(self._data), []
        return data

    def close(self) -> None:
        self._closed = True
        self._transport.abort()

    async def _arrival(self) -> None:
        if self._closed:
            raise LoadError("the server closed the connection before the end of its answer")
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._waiter = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not derive from it

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self._wake()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()
        self._wake()

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._data.append(body)

    def on_message_complete(self) -> None:
        self._ended = True
        self._keeps_alive = self._parser.should_keep_alive()
