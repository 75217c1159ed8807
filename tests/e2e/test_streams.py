"""Streams whose two sides differ in speed: clients that disconnect, readers that stop, engines that take long."""

import asyncio
import time
from typing import Any

import psutil
import pytest

from tests.e2e.conftest import Served, StartEngine, StartGateway
from tests.e2e.engines import (
    DONE,
    MODEL,
    STREAM_END,
    STREAM_HEAD,
    Engine,
    FakeEngine,
    Received,
    answer,
    chunk,
    token,
)
from tests.e2e.gateway import Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LEFT_WITHIN_S = 0.5
"""From the client's disconnect to the engine's notice of it."""


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, **fields}


async def never_answer(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def begin_and_hang(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + token("one"))
    await asyncio.Event().wait()


async def send_headers_and_hang(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    await asyncio.Event().wait()


async def begin_a_whole_answer_and_hang(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer()[:-20])
    await asyncio.Event().wait()


async def go_on_for_ever(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD)
    while True:
        writer.write(token("x"))
        await writer.drain()
        await asyncio.sleep(0.01)


async def nothing_is_held(gateway: Gateway) -> None:
    for name in ("magnus_queue_waiting", "magnus_requests_running", "magnus_backend_in_flight"):
        await until(gateway.shows(name, 0), f"{name} is 0")
    assert await gateway.metric("magnus_backend_kv_reserved_tokens") == 0


# Clients that disconnect


MOMENTS = [
    pytest.param(never_answer, False, id="before a whole answer"),
    pytest.param(begin_a_whole_answer_and_hang, False, id="within a whole answer"),
    pytest.param(never_answer, True, id="before a stream"),
    pytest.param(send_headers_and_hang, True, id="before the first event"),
    pytest.param(begin_and_hang, True, id="within a stream"),
    pytest.param(go_on_for_ever, True, id="while events come"),
]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
@pytest.mark.parametrize(("respond", "stream"), MOMENTS)
async def test_engine_is_notified_at_once_if_a_client_disconnects(
    served_by: Served, app: str, path: str, respond: Any, stream: bool
) -> None:
    gateway, fake = served_by(respond)
    cancelled = await gateway.metric("magnus_requests_total", route=path, status="cancelled")
    body = chat(stream=stream) | {"input": "x"}
    pending = asyncio.create_task(gateway.http.post(path, json=body, headers={"x-app-id": app}))
    await until(fake.has_received(1), "the engine has the request")
    await asyncio.sleep(0.05)
    left_s = asyncio.get_running_loop().time()
    pending.cancel()
    await asyncio.gather(pending, return_exceptions=True)

    async def is_notified() -> bool:
        return len(fake.left_s) == 1

    await until(is_notified, "the engine is notified")
    assert fake.left_s[0] - left_s < LEFT_WITHIN_S
    await nothing_is_held(gateway)
    if path != "/v1/embeddings":
        await gateway.wait_for_totals(app, requests=1, cancelled=1)
    await until(
        gateway.shows("magnus_requests_total", cancelled + 1, route=path, status="cancelled"),
        "the request counts as cancelled",
    )


# Readers that stop


async def test_stopped_reader_slows_its_engine_and_no_other_client(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine, app: str
) -> None:
    event = token("x" * 1000)
    written = 0

    async def flood(request: Received, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        while written < 512_000_000:
            writer.write(event * 50)
            await writer.drain()
            written += 50 * len(event)

    fake = await start_engine(flood)
    gateway = await start_gateway(
        fake.backend("fake", models=["flood"]), simulated_engine.backend("good", models=[MODEL])
    )
    streaming = gateway.http.stream("POST", "/v1/chat/completions", json=chat(model="flood", stream=True))
    async with streaming as response:
        assert response.status_code == 200
        before = psutil.Process().memory_info().rss
        previous = -1
        while written != previous:  # until no buffer and no socket accepts more
            previous = written
            await asyncio.sleep(0.5)
        assert written < 64_000_000  # the sockets' buffers; two of them have megabytes
        assert psutil.Process().memory_info().rss - before < 32_000_000

        started = time.monotonic()
        others = [gateway.http.post("/v1/chat/completions", json=chat(stream=True)) for _ in range(20)]
        assert {other.status_code for other in await asyncio.gather(*others)} == {200}
        assert time.monotonic() - started < 5
    await nothing_is_held(gateway)


async def test_reader_that_pauses_gets_every_byte(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    count = 40_000

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for number in range(0, count, 100):
            writer.write(b"".join(token(f"{n:05} {'x' * 100}") for n in range(number, number + 100)))
            await writer.drain()
        writer.write(token("", finish_reason="stop") + DONE + STREAM_END)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"), upstream={"idle_timeout_s": 1})
    streaming = gateway.http.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers={"x-app-id": app})
    text = b""
    async with streaming as response:
        async for part in response.aiter_raw():
            if not text:
                await asyncio.sleep(2)  # longer than an engine may be silent
            text += part

    assert [text.find(b'"%05d ' % n) >= 0 for n in (0, 1, count // 2, count - 1)] == [True] * 4
    assert text.count(b'"choices"') == count + 1
    assert text.endswith(b"data: [DONE]\n\n")
    await gateway.wait_for_totals(app, ok=1)


async def test_reader_that_stops_is_disconnected_at_the_total_timeout(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def flood(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(token("x" * 1000) * 50)
            await writer.drain()

    fake = await start_engine(flood)
    gateway = await start_gateway(fake.backend("fake", total_timeout_s=2))
    streaming = gateway.http.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers={"x-app-id": app})
    async with streaming as response:
        assert response.status_code == 200
        await nothing_is_held(gateway)
    await gateway.wait_for_totals(app, requests=1)


# Timeouts of one backend


@pytest.mark.parametrize(
    ("own", "respond", "stream"),
    [
        ({"first_byte_timeout_s": 0.3}, never_answer, False),
        ({"first_byte_timeout_s": 0.3}, send_headers_and_hang, True),
        ({"idle_timeout_s": 0.3}, begin_and_hang, True),
        ({"total_timeout_s": 0.3}, go_on_for_ever, True),
        ({"total_timeout_s": 0.3}, never_answer, False),
    ],
)
async def test_each_backend_has_its_own_timeouts(
    start_engine: StartEngine,
    start_gateway: StartGateway,
    app: str,
    own: dict[str, float],
    respond: Any,
    stream: bool,
) -> None:
    fake: FakeEngine = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake", **own))
    response = await gateway.http.post("/v1/chat/completions", json=chat(stream=stream), headers={"x-app-id": app})

    assert '"backend_timeout"' in response.text
    assert "[DONE]" not in response.text
    await nothing_is_held(gateway)
    await gateway.wait_for_totals(app, requests=1, failed=1)


# Characters that are split between chunks


@pytest.mark.parametrize("size", [1, 2, 3])
async def test_characters_split_between_chunks_arrive_whole(served_by: Served, app: str, size: int) -> None:
    said = "ärger 🦙 漢字 \u2028 é"
    events = f'data: {{"choices":[{{"index":0,"delta":{{"content":"{said}"}},"finish_reason":null}}]}}\n\n'.encode()
    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    sent = events + end

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(0, len(sent), size):
            writer.write(chunk(sent[at : at + size]))
            await writer.drain()
        writer.write(STREAM_END)

    gateway, _ = served_by(respond)
    async with gateway.sdk(app) as sdk:
        stream = await sdk.chat.completions.create(**chat(stream=True))
        text = "".join([part.choices[0].delta.content or "" async for part in stream])
    assert text == said
