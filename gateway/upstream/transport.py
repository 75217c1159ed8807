"""HTTP/1.1 to the engines, for requests and for scrapes, over connections that are kept open.

It does only what a proxy needs: no redirects, cookies, proxy settings or compression, and it adds no header. A general
HTTP client took a quarter of the gateway's CPU time; see docs/performance.md.
"""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property

import httpx2

from gateway.upstream.connection import EngineConnection

MAX_IDLE_S = 60.0
"""An idle connection is closed after this time."""

RESEND_WITHIN_S = 0.1
"""A kept connection that ends this soon after a request was written was closed before the engine could read it. The
time covers a round trip to an engine far away. An engine that closes later has worked on the request."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int


class Http1Transport(httpx2.AsyncBaseTransport):
    """Opens one connection for each concurrent request, and keeps it for later requests.

    Of a request's timeouts only `connect` has an effect here; the sender limits everything else.

    An engine may close an idle connection at the moment when a request is sent over it. Then the request is sent once
    more, over a new connection, and all other idle connections to that engine are closed. Every other loss of a
    connection is an error, because the engine may have worked on the request; the retry budget decides what follows.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[_Origin, list[EngineConnection]] = defaultdict(list)
        self._busy: set[EngineConnection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. The caller has to close the response's stream.

        Raises:
            httpx2.ConnectTimeout: the connection took longer than the request's `connect` timeout.
            httpx2.TransportError: the connection failed, or the response is not HTTP.
        """
        url = request.url
        origin = _Origin(url.scheme, url.host, url.port or _PORTS[url.scheme])
        head, body = _head(request), await request.aread()
        if (kept := self._take_idle(origin)) is not None:
            loop = asyncio.get_running_loop()
            sent_s = loop.time()
            try:
                return await self._exchange(origin, kept, head, body)
            except httpx2.ReadError:
                self._close_idle(origin)
                if kept.received_any or loop.time() - sent_s > RESEND_WITHIN_S:
                    raise
        return await self._exchange(origin, await self._connect(origin, request), head, body)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in [*self._busy, *(one for idle in self._idle.values() for one in idle)]:
            connection.abort()
        self._busy.clear()
        self._idle.clear()

    def put_back(self, origin: _Origin, connection: EngineConnection) -> None:
        """Keep a connection after its response, if it can be used again."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        if connection.release():
            self._idle[origin].append(connection)
            if self._sweep is None:
                self._schedule_sweep()

    async def _exchange(
        self, origin: _Origin, connection: EngineConnection, head: bytes, body: bytes
    ) -> httpx2.Response:
        """Send a request over a connection, and wait for the headers of the response."""
        self._busy.add(connection)
        try:
            response = await connection.send(head, body)
        except BaseException:
            self._busy.discard(connection)
            connection.abort()
            raise
        return httpx2.Response(response.status, headers=response.headers, stream=_Body(self, origin, connection))

    def _close_idle(self, origin: _Origin) -> None:
        """Close the idle connections to an engine: it has closed one of them, so it may have closed all."""
        for connection in self._idle.pop(origin, []):
            connection.abort()

    def _take_idle(self, origin: _Origin) -> EngineConnection | None:
        """Return the connection that was used last, so that the surplus ones stay idle and close."""
        idle = self._idle.get(origin)
        return idle.pop() if idle else None

    async def _connect(self, origin: _Origin, request: httpx2.Request) -> EngineConnection:
        def protocol() -> EngineConnection:
            return EngineConnection(lambda closed: self._forget(origin, closed))

        timeout_s = request.extensions.get("timeout", {}).get("connect")
        tls = self._tls if origin.scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(protocol, origin.host, origin.port, ssl=tls)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"no connection within {timeout_s:g} s", request=request) from error
        except OSError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        return connection

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _forget(self, origin: _Origin, closed: EngineConnection) -> None:
        idle = self._idle.get(origin, [])
        if closed in idle:
            idle.remove(closed)

    def _schedule_sweep(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(MAX_IDLE_S, self._close_unused)

    def _close_unused(self) -> None:
        self._sweep = None
        before_s = asyncio.get_running_loop().time() - MAX_IDLE_S
        for origin, idle in list(self._idle.items()):
            for connection in [one for one in idle if one.idle_since_s <= before_s]:
                idle.remove(connection)
                connection.abort()
            if not idle:
                del self._idle[origin]
        if self._idle:
            self._schedule_sweep()


class _Body(httpx2.AsyncByteStream):
    """The body of a response, in parts as they arrive."""

    def __init__(self, transport: Http1Transport, origin: _Origin, connection: EngineConnection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self._connection.next_part():
            yield part

    async def aclose(self) -> None:
        self._transport.put_back(self._origin, self._connection)


def _head(request: httpx2.Request) -> bytes:
    """Return the request line and the headers as bytes."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    for name, value in request.headers.raw:
        if b"\n" in value or b"\r" in value:
            raise httpx2.LocalProtocolError(f"the header {name.decode('latin-1')!r} contains a line break")
        lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
