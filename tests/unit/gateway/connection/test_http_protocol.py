"""The limits of one connection. The transport is a fake; time is virtual."""

import asyncio
import json
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from gateway.server import http_protocol
from gateway.server.http_protocol import (
    HEAD_S,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_PIPELINED,
    UNREAD_BODY_S,
    WRITE_STALL_S,
    HttpProtocol,
)

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEA\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport(asyncio.Transport):
    """A client's side of a connection: what was written to it, and whether it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: Any = None
        self.written = b""
        self.unsent = 0
        self.closing = self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def write_eof(self) -> None: ...

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unsent:
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        if not self.aborted:
            self.closing = self.aborted = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class App:
    """Reads the body and answers with it, or waits for `go` first."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.go = asyncio.Event()
        self.go.set()
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            more = message["more_body"]
        self.bodies.append(body)
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Connection:
    """A connection of a client to an application."""

    def __init__(self, app: App | None = None, state: ServerState | None = None) -> None:
        self.app = app or App()
        config = Config(self.app, interface="asgi3", ws="none", lifespan="off", log_config=None, timeout_keep_alive=75)
        config.load()
        self.protocol = HttpProtocol(config, state or ServerState(), {}, asyncio.get_running_loop())
        self.transport = Transport()
        self.transport.protocol = self.protocol
        self.protocol.connection_made(self.transport)

    async def send(self, *parts: bytes) -> bytes:
        """Send parts and return what the gateway has written so far."""
        for part in parts:
            self.protocol.data_received(part)
            await asyncio.sleep(0.01)
        return self.transport.written

    async def closed_after(self, seconds: float) -> bool:
        """Return whether the connection is open shortly before a time and closed shortly after it."""
        await asyncio.sleep(seconds - 0.5)
        was_open = not self.transport.closing
        await asyncio.sleep(3.5)
        return was_open and self.transport.closing

    async def end(self) -> None:
        self.transport.abort()
        await asyncio.sleep(0)


def post(body: bytes, *fields: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + b"".join(fields) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status(written: bytes) -> int:
    return int(written.split(b" ")[1])


def code(written: bytes) -> str:
    return json.loads(written.partition(b"\r\n\r\n")[2])["error"]["code"]


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0, example/2"])
@pytest.mark.parametrize("split", [0, 3, 40, 140])
async def test_offer_of_another_protocol_is_ignored_and_the_body_is_read(protocol: bytes, split: int):
    connection = Connection()
    whole = post(b"GET / HTTP/1.1\r\n\r\n", OFFER.replace(b"h2c", protocol))
    at = len(whole) - split
    written = await connection.send(whole[:at], *([whole[at:]] if split else []))
    again = await connection.send(GET)

    assert status(written) == 200
    assert connection.app.bodies == [b"GET / HTTP/1.1\r\n\r\n", b""]
    assert again.count(b"HTTP/1.1 200") == 2
    await connection.end()


async def test_chunked_body_after_an_offer_is_read():
    connection = Connection()
    head = b"POST / HTTP/1.1\r\nHost: x\r\n" + OFFER + b"Transfer-Encoding: chunked\r\n\r\n"
    await connection.send(head, b"5\r\nhello\r\n", b"0\r\n\r\n")

    assert connection.app.bodies == [b"hello"]
    await connection.end()


async def test_pipelined_offers_are_all_answered():
    connection = Connection()
    written = await connection.send(post(b"one", OFFER) + post(b"two", OFFER) + GET)

    assert connection.app.bodies == [b"one", b"two", b""]
    assert written.count(b"HTTP/1.1 200") == 3
    await connection.end()


async def test_connect_is_refused_with_the_allowed_methods():
    connection = Connection()
    written = await connection.send(b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n")

    assert status(written) == 405
    assert b"allow: GET, HEAD, POST, OPTIONS" in written
    await connection.end()


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET / HTTP/1.1\r\n", *[b"x%d: a\r\n" % i for i in range(MAX_HEADERS + 2)]],
        [b"GET / HTTP/1.1\r\nx: ", *[b"a" * 4096] * (MAX_HEAD_BYTES // 4096 + 1)],
        [b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"\r\n" * (MAX_HEAD_BYTES // 2 + 1)],
    ],
    ids=["fields", "one field", "target in one packet", "empty lines"],
)
async def test_head_that_is_too_large_is_cut_off(parts: list[bytes]):
    connection = Connection()
    written = await connection.send(*parts)

    assert (status(written), code(written)) == (431, "head_too_large")
    assert connection.app.bodies == []
    await asyncio.sleep(3)
    assert connection.transport.aborted


async def test_head_as_large_as_the_limits_is_answered():
    connection = Connection()
    fields = b"".join(b"x%03d: %b\r\n" % (i, b"a" * 400) for i in range(MAX_HEADERS - 1))
    written = await connection.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n")

    assert status(written) == 200
    await connection.end()


async def test_silent_connection_is_closed_without_an_answer():
    connection = Connection()
    assert await connection.closed_after(HEAD_S)
    assert connection.transport.written == b""


async def test_head_must_be_complete_in_time_however_steadily_it_arrives():
    connection = Connection()
    await connection.send(b"GET / HTTP/1.1\r\n")
    for _ in range(12):
        connection.protocol.data_received(b"a: b\r\n")
        await asyncio.sleep(1)

    assert (status(connection.transport.written), code(connection.transport.written)) == (408, "head_timeout")
    await asyncio.sleep(3)
    assert connection.transport.aborted


async def test_one_byte_after_an_answer_does_not_keep_the_connection():
    connection = Connection()
    await connection.send(GET, b"G")
    assert await connection.closed_after(HEAD_S)


async def test_idle_connection_is_kept_for_the_keep_alive_time():
    connection = Connection()
    await connection.send(GET)
    assert await connection.closed_after(75)


async def test_body_that_goes_on_after_its_answer_ends_in_time():
    connection = Connection(App(reads=False))
    await connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(8):
        connection.protocol.data_received(b"x")
        await asyncio.sleep(1)
    assert not connection.transport.closing
    assert await connection.closed_after(UNREAD_BODY_S - 8)


async def test_framing_without_a_body_is_refused():
    connection = Connection()
    await connection.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n")
    written = await connection.send(*[b"trailer: " + b"a" * 8000 + b"\r\n"] * 10)

    assert status(written) == 400
    await asyncio.sleep(3)
    assert connection.transport.aborted


async def test_too_many_pipelined_requests_end_the_connection():
    app = App()
    app.go.clear()
    connection = Connection(app)
    await connection.send(GET * (MAX_PIPELINED + 2))
    app.go.set()
    await asyncio.sleep(1)

    assert connection.transport.closing
    assert len(app.bodies) <= MAX_PIPELINED + 1
    await connection.end()


async def test_connection_beyond_the_limit_is_told_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_protocol, "max_connections", lambda: 2)
    state = ServerState()
    connections = [Connection(state=state) for _ in range(3)]
    written = [await connection.send(GET) for connection in connections]

    assert [status(answer) for answer in written] == [200, 200, 503]
    assert code(written[2]) == "too_many_connections"
    assert b"retry-after: 1" in written[2]
    for connection in connections:
        await connection.end()


async def test_client_that_reads_nothing_loses_its_connection():
    app = App()
    app.go.clear()
    connection = Connection(app)
    await connection.send(GET)
    connection.transport.unsent = 100_000
    connection.protocol.pause_writing()
    app.go.set()

    assert await connection.closed_after(WRITE_STALL_S)
    assert connection.transport.aborted


async def test_client_that_reads_slowly_keeps_its_connection():
    app = App()
    app.go.clear()
    connection = Connection(app)
    await connection.send(GET)
    connection.transport.unsent = 100_000
    connection.protocol.pause_writing()
    for _ in range(5):
        await asyncio.sleep(WRITE_STALL_S - 1)
        connection.transport.unsent -= 100
    assert not connection.transport.closing

    app.go.set()
    connection.protocol.resume_writing()
    await asyncio.sleep(1)
    assert status(connection.transport.written) == 200
    await connection.end()
