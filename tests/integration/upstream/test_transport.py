"""The transport against servers on real sockets. Each server sends exactly the bytes that the test gives it."""

import asyncio
import socket
import ssl
from contextlib import asynccontextmanager, suppress

import httpx2
import pytest
import trustme

from gateway.upstream import transport as transport_module
from gateway.upstream.connection import HIGH_WATER_BYTES, PART_BYTES
from gateway.upstream.transport import Http1Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"


class ScriptedServer:
    """Answers every request with `answer(reader, writer)`, and counts connections and requests."""

    def __init__(self, answer):
        self.connections = 0
        self.requests = []
        self.ended = asyncio.Event()
        self._changed = asyncio.Condition()
        self._answer = answer
        self._writers = []
        self._serving = []

    @asynccontextmanager
    async def listening(self):
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            yield self
            self.break_off()
            await asyncio.gather(*self._serving)

    def break_off(self):
        for writer in self._writers:
            writer.transport.abort()

    async def received(self, times):
        async with asyncio.timeout(5), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= times)

    async def _serve(self, reader, writer):
        self.connections += 1
        self._writers.append(writer)
        self._serving.append(asyncio.current_task())
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                async with self._changed:
                    self.requests.append(head)
                    self._changed.notify_all()
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            self.ended.set()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def answering(*answers, close=False):
    """A server that gives these answers in turn and repeats the last one."""
    left = list(answers)

    async def answer(_, writer):
        parts = left.pop(0) if len(left) > 1 else left[0]
        for part in [parts] if isinstance(parts, bytes) else parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.005)
        if close:
            writer.close()

    return ScriptedServer(answer).listening()


@pytest.fixture
async def transport():
    async with Http1Transport() as opened:
        yield opened


def request_to(url, method="GET", connect_s=5.0, **more):
    return httpx2.Request(method, url, extensions={"timeout": {"connect": connect_s}}, **more)


async def exchange(transport, url, **more):
    response = await transport.handle_async_request(request_to(url, **more))
    try:
        return response.status_code, b"".join([part async for part in response.stream])
    finally:
        await response.aclose()


async def test_request_is_sent_without_further_headers(transport):
    bodies = []

    async def answer(reader, writer):
        bodies.append(await reader.readexactly(3))
        writer.write(OK)

    async with ScriptedServer(answer).listening() as server:
        await exchange(transport, f"{server.url}/v1/x?y=%C3%A9", method="POST", content=b"abc", headers={"x-one": "1"})
    host = server.url.removeprefix("http://").encode()
    expected = {b"host: " + host, b"x-one: 1", b"content-length: 3"}
    line, *headers = server.requests[0].rstrip(b"\r\n").split(b"\r\n")
    assert line == b"POST /v1/x?y=%C3%A9 HTTP/1.1"
    assert {header[:1].lower() + header[1:] for header in map(bytes.lower, headers)} == expected
    assert bodies == [b"abc"]


async def test_connection_is_used_again(transport):
    async with answering(OK) as server:
        assert [await exchange(transport, server.url) for _ in range(3)] == [(200, b"ok")] * 3
        assert server.connections == 1


async def test_concurrent_requests_use_a_connection_each_and_all_stay_open(transport):
    async with answering(OK) as server:
        for _ in range(2):
            await asyncio.gather(*(exchange(transport, server.url) for _ in range(5)))
        assert server.connections == 5


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "status", "body", "kept"),
    [
        ([CHUNKED, b"2\r\na", b"b\r\n", b"1\r\nc\r\n0\r\n", b"\r\n"], 200, b"abc", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok", True),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n", OK], 200, b"ok", True),
        (b"HTTP/1.1 500 No\r\ncontent-length: 3\r\n\r\nbad", 500, b"bad", True),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (OK + b"and more", 200, b"ok", False),
        (OK + OK, 200, b"ok", False),
    ],
    ids=["chunked", "none", "continue", "hints", "error", "close", "http/1.0", "more", "twice"],
)
async def test_every_framing_yields_the_body_and_keeps_the_connection_if_possible(transport, parts, status, body, kept):
    async with answering(parts) as server:
        for _ in range(2):
            assert await exchange(transport, server.url) == (status, body)
        assert server.connections == (1 if kept else 2)


async def test_body_without_a_length_ends_with_the_connection(transport):
    async with answering([b"HTTP/1.1 200 OK\r\n\r\nab", b"c"], close=True) as server:
        assert await exchange(transport, server.url) == (200, b"abc")


async def test_parts_arrive_when_they_are_sent(transport):
    going_on = asyncio.Event()

    async def answer(_, writer):
        writer.write(CHUNKED + b"1\r\na\r\n")
        await going_on.wait()
        writer.write(b"1\r\nb\r\n0\r\n\r\n")

    async with ScriptedServer(answer).listening() as server:
        response = await transport.handle_async_request(request_to(server.url))
        parts = aiter(response.stream)
        assert await anext(parts) == b"a"
        going_on.set()
        assert [part async for part in parts] == [b"b"]
        await response.aclose()


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (b"", httpx2.ReadError),
        (b"HTTP/1.1 200", httpx2.ReadError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\ncut", httpx2.ReadError),
        (CHUNKED + b"9\r\ncut", httpx2.ReadError),
        (CHUNKED + b"3\r\ncut\r\n", httpx2.ReadError),
        (b"SSH-2.0-OpenSSH_9.6\r\n", httpx2.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", httpx2.RemoteProtocolError),
        (CHUNKED + b"zz\r\n", httpx2.RemoteProtocolError),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n", httpx2.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000, httpx2.RemoteProtocolError),
    ],
    ids=["nothing", "line", "length", "chunk", "chunks", "ssh", "number", "size", "upgrade", "headers"],
)
async def test_truncated_response_or_other_protocol_is_an_error(transport, parts, error):
    async with answering(parts, close=True) as server:
        with pytest.raises(error):
            await exchange(transport, server.url)
        assert server.connections == 1


async def test_bytes_before_the_end_of_a_connection_come_before_the_error(transport):
    async with answering(CHUNKED + b"3\r\nabc\r\n", close=True) as server:
        response = await transport.handle_async_request(request_to(server.url))
        parts = aiter(response.stream)
        assert await anext(parts) == b"abc"
        with pytest.raises(httpx2.ReadError):
            await anext(parts)
        await response.aclose()


async def test_request_is_sent_again_if_the_idle_connection_was_closed(transport):
    async def answer(_, writer):
        if len(server.requests) == 2:
            writer.close()  # without a byte, as if it had timed out when the request came
        else:
            writer.write(OK)

    async with ScriptedServer(answer).listening() as server:
        assert [await exchange(transport, server.url, content=b"") for _ in range(2)] == [(200, b"ok")] * 2
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_request_that_closes_every_connection_is_sent_twice_at_most(transport):
    all_came = asyncio.Event()

    async def answer(_, writer):
        if len(server.requests) > 20:
            writer.transport.abort()
            return
        if len(server.requests) == 20:
            all_came.set()
        await all_came.wait()
        writer.write(OK)

    async with ScriptedServer(answer).listening() as server:
        await asyncio.gather(*(exchange(transport, server.url) for _ in range(20)))
        with pytest.raises(httpx2.ReadError):
            await exchange(transport, server.url)
        assert (server.connections, len(server.requests)) == (21, 22)


async def test_request_that_the_engine_worked_on_before_it_closed_is_not_sent_again(transport, monkeypatch):
    monkeypatch.setattr(transport_module, "RESEND_WITHIN_S", 0.0)
    async with answering(OK, b"") as server:
        await exchange(transport, server.url)
        sending = asyncio.create_task(exchange(transport, server.url))
        await server.received(2)
        server.break_off()
        with pytest.raises(httpx2.ReadError):
            await sending
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_all_kept_connections_are_closed_when_one_turned_out_closed(transport):
    both_came = asyncio.Event()

    async def answer(_, writer):
        if len(server.requests) == 3:
            writer.close()
            return
        if len(server.requests) == 2:
            both_came.set()
        await both_came.wait()
        writer.write(OK)

    async with ScriptedServer(answer).listening() as server:
        await asyncio.gather(*(exchange(transport, server.url) for _ in range(2)))
        assert [await exchange(transport, server.url) for _ in range(2)] == [(200, b"ok")] * 2
        assert server.connections == 3  # the second kept connection is not used after the first was closed


async def test_request_is_not_sent_again_after_a_byte_of_the_response(transport):
    async with answering(OK, b"HTTP/1.1 2") as server:
        await exchange(transport, server.url)
        sending = asyncio.create_task(exchange(transport, server.url))
        await server.received(2)
        await asyncio.sleep(0.05)
        server.break_off()
        with pytest.raises(httpx2.ReadError):
            await sending
        assert len(server.requests) == 2


async def test_closed_connection_is_not_used(transport):
    async with answering(OK, OK, close=True) as server:
        await exchange(transport, server.url)
        await server.ended.wait()
        assert await exchange(transport, server.url) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (2, 2)


async def test_closing_an_unfinished_response_closes_its_connection(transport):
    async with answering([CHUNKED, b"1\r\na\r\n"]) as server:
        response = await transport.handle_async_request(request_to(server.url))
        await response.aclose()
        async with asyncio.timeout(5):
            await server.ended.wait()


async def test_cancelling_a_request_closes_its_connection(transport):
    async with answering(b"HTTP/1.1 ") as server:
        sending = asyncio.create_task(exchange(transport, server.url))
        await server.received(1)
        sending.cancel()
        async with asyncio.timeout(5):
            await server.ended.wait()


async def test_long_body_arrives_complete(transport):
    body = bytes(range(256)) * (10 * PART_BYTES // 256)
    received = []

    async def answer(reader, writer):
        received.append(await reader.readexactly(len(body)))
        writer.write(OK)

    async with ScriptedServer(answer).listening() as server:
        for _ in range(2):
            assert await exchange(transport, server.url, method="POST", content=body) == (200, b"ok")
        assert (server.connections, received) == (1, [body, body])


async def test_refusal_in_the_middle_of_a_long_body_is_returned(transport):
    body = bytes(64 * PART_BYTES)

    async def answer(reader, writer):
        await reader.readexactly(PART_BYTES)
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await writer.wait_closed()

    async with ScriptedServer(answer).listening() as server:
        async with asyncio.timeout(10):
            assert await exchange(transport, server.url, method="POST", content=body) == (413, b"no")


async def test_response_that_nobody_reads_stops_the_engine_from_sending(transport):
    sent = 0

    async def answer(_, writer):
        nonlocal sent
        writer.write(CHUNKED)
        while True:
            writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
            sent += 65_536
            await writer.drain()

    async with ScriptedServer(answer).listening() as server:
        response = await transport.handle_async_request(request_to(server.url))
        before = -1
        while sent > before:  # until the engine cannot send more
            before = sent
            await asyncio.sleep(0.2)
        taken = 0
        async for part in response.stream:
            taken += len(part)
            if taken > before:  # the engine sent more, because there is a reader now
                break
        await response.aclose()
    assert HIGH_WATER_BYTES < before < 64 * 1024 * 1024


async def test_refused_connection_is_an_error(transport):
    async with answering(OK) as server:
        pass
    with pytest.raises(httpx2.ConnectError):
        await exchange(transport, server.url)


async def test_slow_connection_is_a_timeout(transport):
    async with answering(OK) as server:  # it never answers a TLS handshake
        url = server.url.replace("http://127.0.0.1", "https://localhost")
        with pytest.raises(httpx2.ConnectTimeout, match=r"0\.05 s"):
            await exchange(transport, url, connect_s=0.05)


async def test_header_with_a_line_break_is_not_sent(transport):
    async with answering(OK) as server:
        with pytest.raises(httpx2.LocalProtocolError, match="authorization"):
            await exchange(transport, server.url, headers={"authorization": "Bearer a\r\nx-other: b"})
        assert server.requests == []


@asynccontextmanager
async def behind_tls(issuer):
    """The URL of a server that answers all requests of one connection."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issuer.issue_cert("localhost").configure_cert(tls)

    def serve():
        plain, _ = listener.accept()
        with plain, suppress(OSError), tls.wrap_socket(plain, server_side=True) as connection:
            while connection.recv(65_536):
                connection.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve))
        yield f"https://localhost:{listener.getsockname()[1]}"
        await serving


async def test_tls_connection_requires_a_valid_certificate(tmp_path, monkeypatch):
    known, stranger = trustme.CA(), trustme.CA()
    known.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with behind_tls(known) as url, Http1Transport() as transport:
        assert [await exchange(transport, url) for _ in range(2)] == [(200, b"ok")] * 2
    async with behind_tls(stranger) as url, Http1Transport() as transport:
        with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
            await exchange(transport, url)


async def test_connection_that_is_idle_for_long_is_closed(transport, monkeypatch):
    monkeypatch.setattr(transport_module, "MAX_IDLE_S", 0.05)
    async with answering(OK) as server:
        await exchange(transport, server.url)
        async with asyncio.timeout(5):
            await server.ended.wait()
        assert await exchange(transport, server.url) == (200, b"ok")
        assert server.connections == 2


async def test_closing_the_transport_closes_idle_and_busy_connections(transport):
    async with answering(OK, CHUNKED) as server:
        await exchange(transport, server.url)
        running = await transport.handle_async_request(request_to(server.url))
        other = await transport.handle_async_request(request_to(server.url))
        await transport.aclose()
        with pytest.raises(httpx2.ReadError):
            await anext(aiter(running.stream))
        for response in (running, other):
            await response.aclose()
        assert server.connections == 2
