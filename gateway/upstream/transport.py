"""The way to the engines: one transport for requests and looks, HTTP/1.1 over connections that are kept.

It does what a proxy needs, and nothing that a client would want besides: no redirects, cookies, proxies of the
environment or compression, and no header is added to a request. A general HTTP client cost a quarter of the gateway's
CPU time; see docs/performance.md.
"""

import asyncio
import ssl
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property

import httpx2

from gateway.upstream.connection import Connection

KEPT_S = 60.0
"""How long a connection may idle."""

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class _Origin:
    scheme: str
    host: str
    port: int


class Http1Transport(httpx2.AsyncBaseTransport):
    """As many connections as there are requests, each kept for the next one.

    Of a request's time-outs only that for the connection counts; silence is its sender's to bound. A request that finds
    its kept connection closed by the engine, before a byte of an answer, is sent once more over another.
    """

    def __init__(self) -> None:
        self._idle: defaultdict[_Origin, list[Connection]] = defaultdict(list)
        self._busy: set[Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the response's stream has to be closed.

        Raises:
            httpx2.ConnectTimeout: no connection within the request's `connect` time-out.
            httpx2.TransportError: no connection, a broken one, or not HTTP.
        """
        url = request.url
        origin = _Origin(url.scheme, url.host, url.port or _PORTS[url.scheme])
        head, body = _head(request), await request.aread()
        while True:
            kept = self._kept(origin)
            connection = kept or await self._connect(origin, request)
            self._busy.add(connection)
            try:
                answer = await connection.ask(head, body)
            except httpx2.ReadError:
                self._drop(connection)
                if kept is None or connection.heard:
                    raise
            except BaseException:
                self._drop(connection)
                raise
            else:
                stream = _Body(self, origin, connection)
                return httpx2.Response(answer.status, headers=answer.headers, stream=stream)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._sweep is not None:
            self._sweep.cancel()
        for connection in [*self._busy, *(one for kept in self._idle.values() for one in kept)]:
            connection.abort()
        self._busy.clear()
        self._idle.clear()

    def put_back(self, origin: _Origin, connection: Connection) -> None:
        """Keep a connection whose exchange is over, if it may serve again."""
        if connection not in self._busy:
            return
        self._busy.remove(connection)
        if connection.put_aside():
            self._idle[origin].append(connection)
            if self._sweep is None:
                self._sweep_later()

    def _drop(self, connection: Connection) -> None:
        self._busy.discard(connection)
        connection.abort()

    def _kept(self, origin: _Origin) -> Connection | None:
        """Return the connection that was used last: the others may rest until they are closed."""
        kept = self._idle.get(origin)
        return kept.pop() if kept else None

    async def _connect(self, origin: _Origin, request: httpx2.Request) -> Connection:
        def connection() -> Connection:
            return Connection(lambda ended: self._forget(origin, ended))

        patience_s = request.extensions.get("timeout", {}).get("connect")
        tls = self._tls if origin.scheme == "https" else None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                _, connected = await loop.create_connection(connection, origin.host, origin.port, ssl=tls)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"no connection within {patience_s:g} s", request=request) from error
        except OSError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        return connected

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    def _forget(self, origin: _Origin, ended: Connection) -> None:
        kept = self._idle.get(origin, [])
        if ended in kept:
            kept.remove(ended)

    def _sweep_later(self) -> None:
        self._sweep = asyncio.get_running_loop().call_later(KEPT_S, self._close_unused)

    def _close_unused(self) -> None:
        self._sweep = None
        before_s = asyncio.get_running_loop().time() - KEPT_S
        for origin, kept in list(self._idle.items()):
            for connection in [one for one in kept if one.idle_since_s <= before_s]:
                kept.remove(connection)
                connection.abort()
            if not kept:
                del self._idle[origin]
        if self._idle:
            self._sweep_later()


class _Body(httpx2.AsyncByteStream):
    """An answer's body, in parts as they come."""

    def __init__(self, transport: Http1Transport, origin: _Origin, connection: Connection) -> None:
        self._transport = transport
        self._origin = origin
        self._connection = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self._connection.next_part():
            yield part

    async def aclose(self) -> None:
        self._transport.put_back(self._origin, self._connection)


def _head(request: httpx2.Request) -> bytes:
    """Return the request line and the headers."""
    lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.url.raw_path)]
    for name, value in request.headers.raw:
        if b"\n" in value or b"\r" in value:
            raise httpx2.LocalProtocolError(f"a header {name.decode('latin-1')!r} of more than one line")
        lines.append(b"%s: %s" % (name, value))
    return b"\r\n".join([*lines, b"", b""])
