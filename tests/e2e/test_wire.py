"""HTTP itself over plain sockets: versions, framing, encodings, and hostile bodies."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import pytest_asyncio
import zstandard

from tests.e2e.conftest import Served, StartEngine, StartGateway
from tests.e2e.engines import DONE, STREAM_END, STREAM_HEAD, Engine, FakeEngine, Received, answer, token
from tests.e2e.gateway import DEADLINE_S, Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = b'{ "model":"tiny", "messages":[{"role":"user","content":"caf\xc3\xa9"}], "x" : 1.50 }'
STREAMED = BODY.replace(b'"x"', b'"stream":true, "x"')
EVENTS = b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"one"}'


async def answer_all(request: Received, writer: asyncio.StreamWriter) -> None:
    if b'"stream":true' in request.body:
        writer.write(STREAM_HEAD + token("one") + token("two", finish_reason="stop") + DONE + STREAM_END)
    else:
        writer.write(answer())


@asynccontextmanager
async def connected(gateway: Gateway) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    where = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield reader, writer
    finally:
        writer.close()


def head(length: int | None = None, *fields: str, version: str = "1.1") -> bytes:
    lines = [f"POST /v1/chat/completions HTTP/{version}", "Host: x", *fields]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


async def response_of(reader: asyncio.StreamReader) -> tuple[str, dict[str, str], bytes]:
    """Read a response that has a length."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers["content-length"])) if "content-length" in headers else b""
    return status, headers, body


@pytest_asyncio.fixture(loop_scope="session")
async def fake(start_engine: StartEngine) -> FakeEngine:
    return await start_engine(answer_all)


@pytest.mark.parametrize("body", [BODY, STREAMED], ids=["whole", "stream"])
async def test_http_1_0_gets_a_length_and_no_chunks(served_by: Served, body: bytes) -> None:
    gateway, _ = served_by(answer_all)
    async with connected(gateway) as (reader, writer):
        writer.write(head(len(body), version="1.0") + body)
        status, headers, content = await response_of(reader)
        rest = await reader.read()

    assert status.split()[1] == "200"
    assert "transfer-encoding" not in headers
    assert rest == b""
    if body == BODY:
        assert json.loads(content)["choices"]
    else:
        assert content.startswith(EVENTS)
        assert content.endswith(b"data: [DONE]\n\n")
        assert headers["content-type"].startswith("text/event-stream")


async def test_http_1_0_gets_the_error_of_a_broken_stream(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + token("one") + STREAM_END)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    async with connected(gateway) as (reader, writer):
        writer.write(head(len(STREAMED), version="1.0") + STREAMED)
        _, _, content = await response_of(reader)

    assert content.startswith(EVENTS)
    assert json.loads(content.split(b"\n\n")[1].removeprefix(b"data: "))["error"]["code"] == "backend_unavailable"
    assert b"[DONE]" not in content


async def test_chunked_upload_reaches_the_engine_whole(served_by: Served) -> None:
    gateway, fake = served_by(answer_all)
    async with connected(gateway) as (reader, writer):
        writer.write(head(None, "Transfer-Encoding: chunked"))
        for at in range(0, len(BODY), 9):
            part = BODY[at : at + 9]
            writer.write(b"%x;ext=1\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        status, _, _ = await response_of(reader)

    assert status.split()[1] == "200"
    assert fake.received[0].body == BODY


async def test_client_that_expects_100_continue_gets_it_and_then_the_answer(served_by: Served) -> None:
    gateway, fake = served_by(answer_all)
    async with connected(gateway) as (reader, writer):
        for _ in range(2):
            writer.write(head(len(BODY), "Expect: 100-continue"))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            status, headers, _ = await response_of(reader)
            assert status.split()[1] == "200"
            assert "connection" not in headers

    assert [received.body for received in fake.received] == [BODY, BODY]


async def test_client_that_expects_100_continue_is_rejected_before_it_sends_the_body(
    fake: FakeEngine, start_gateway: StartGateway
) -> None:
    gateway = await start_gateway(fake.backend("fake"), auth={"mode": "keys"})
    async with connected(gateway) as (reader, writer):
        writer.write(head(len(BODY), "Expect: 100-continue"))
        status, headers, content = await response_of(reader)
        assert await reader.read() == b""  # the client may still send the body, so the connection cannot be used again

    assert status.split()[1] == "401"
    assert headers["connection"] == "close"
    assert json.loads(content)["error"]["code"] == "invalid_api_key"


async def test_connection_is_kept_for_the_next_request(fake: FakeEngine, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(fake.backend("fake"), auth={"mode": "keys"})
    async with connected(gateway) as (reader, writer):
        for _ in range(3):  # rejected before the body is read; the body must not be taken for the next request
            writer.write(head(len(BODY)) + BODY)
            status, _, _ = await response_of(reader)
            assert status.split()[1] == "401"


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
@pytest.mark.parametrize("times", [1, 30_000], ids=["small", "large"])
async def test_compressed_body_reaches_the_engine_decompressed(
    served_by: Served, encoding: str, pack: Any, times: int
) -> None:
    body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "é" * times}]}).encode()
    gateway, fake = served_by(answer_all)
    response = await gateway.http.post(
        "/v1/chat/completions", content=pack(body), headers={"content-encoding": encoding}
    )

    assert response.status_code == 200
    assert fake.received[0].body == body
    assert "content-encoding" not in fake.received[0].headers


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)])
async def test_decompression_bomb_is_rejected_and_takes_no_memory(
    fake: FakeEngine, start_gateway: StartGateway, encoding: str, pack: Any
) -> None:
    gateway = await start_gateway(fake.backend("fake"), server={"max_body_bytes": 2_000_000})
    bomb = pack(b'{"model":"tiny","x":"' + b"0" * 512_000_000)
    before = psutil.Process().memory_info().rss
    response = await gateway.http.post("/v1/chat/completions", content=bomb, headers={"content-encoding": encoding})

    assert len(bomb) < 2_000_000
    assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")
    assert psutil.Process().memory_info().rss - before < 100_000_000
    assert fake.received == []


async def test_unknown_encoding_is_rejected(served_by: Served) -> None:
    gateway, _ = served_by(answer_all)
    response = await gateway.http.post("/v1/chat/completions", content=BODY, headers={"content-encoding": "br"})

    assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip, zstd")
    assert response.json()["error"]["code"] == "unsupported_content_encoding"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_wrong_content_type_is_ignored(served_by: Served, kind: str) -> None:
    gateway, fake = served_by(answer_all)
    response = await gateway.http.post("/v1/chat/completions", content=BODY, headers={"content-type": kind})

    assert response.status_code == 200
    assert fake.received[0].headers["content-type"] == "application/json"


async def test_simulated_engine_accepts_compressed_bodies(
    start_gateway: StartGateway, simulated_engine: Engine
) -> None:
    gateway = await start_gateway(simulated_engine.backend())
    body = gzip.compress(b'{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":3}')
    response = await gateway.http.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
    assert response.json()["usage"]["completion_tokens"] == 3
