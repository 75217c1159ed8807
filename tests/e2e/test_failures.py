"""Failures of an engine or of the database: the request is retried, or the client gets OpenAI's error."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tests.e2e.engines import (
    DONE,
    MODEL,
    STREAM_END,
    STREAM_HEAD,
    Engine,
    FakeEngine,
    HeldBack,
    Received,
    Respond,
    answer,
    event,
    token,
    whole,
)
from tests.e2e.gateway import Gateway, serving, settings_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

StartGateway = Callable[..., Awaitable[Gateway]]
StartEngine = Callable[[Respond], Awaitable[FakeEngine]]

NOWHERE = "http://127.0.0.1:1"
SELDOM = {"scrape_interval_s": 60}
"""Scrapes are rare here, so that a request finds the dead engine before a scrape does."""

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def chat(*, stream: bool = False, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "stream": stream, **fields}


async def post(gateway: Gateway, app: str, *, stream: bool = False) -> httpx2.Response:
    return await gateway.http.post("/v1/chat/completions", json=chat(stream=stream), headers={"x-app-id": app})


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Check that a response is OpenAI's error object, and return it."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def events_of(response: httpx2.Response) -> list[Any]:
    """Return the events of a stream, decoded except for `[DONE]`."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def content_of(response: httpx2.Response) -> str:
    """Return the text of an answer, whole or streamed."""
    if "text/event-stream" not in response.headers["content-type"]:
        return response.json()["choices"][0]["message"]["content"]
    *events, done = events_of(response)
    assert done == "[DONE]"
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


def broken_stream(response: httpx2.Response, *, after: str) -> dict[str, Any]:
    """Check that a stream has the text `after` and ends in one error event without `[DONE]`. Return the error."""
    assert response.status_code == 200
    *events, last = events_of(response)
    assert "".join(choice["delta"]["content"] for event in events for choice in event["choices"]) == after
    assert list(last) == ["error"]
    assert set(last["error"]) == {"message", "type", "param", "code"}
    return last["error"]


async def failures_of(gateway: Gateway, backend: str) -> float:
    return await gateway.metric("magnus_backend_failures_total", backend=backend)


# Faults of an engine. Each is a `Respond`.


async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def fail_inside(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(
        whole(b'{"error":{"message":"boom","type":"InternalServerError"}}', status="500 Internal Server Error")
    )


async def speak_another_protocol(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")


async def stop_within_the_body(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer()[:-20])


async def send_a_web_page(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>")


async def begin_with_an_error_event(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + event({"error": {"message": "engine dead", "code": 500}}) + DONE + STREAM_END)


async def end_before_the_first_event(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + STREAM_END)


async def be_silent(_: Received, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def die_within_the_stream(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + token("one") + token(" two"))
    await writer.drain()


async def end_the_stream_too_soon(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + token("one") + token(" two") + STREAM_END)


async def fail_within_the_stream(_: Received, writer: asyncio.StreamWriter) -> None:
    failure = {"message": "EngineCore died", "type": "InternalServerError", "code": 500}
    writer.write(STREAM_HEAD + token("one") + token(" two") + event({"error": failure}) + DONE + STREAM_END)


async def fall_silent_within_the_stream(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(STREAM_HEAD + token("one") + token(" two"))
    await writer.drain()
    await asyncio.Event().wait()


@both_ways
async def test_dead_engine_is_not_noticed_by_the_client(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine, app: str, stream: bool
) -> None:
    dead = await start_engine(hang_up)
    gateway = await start_gateway(dead.backend("dead"), simulated_engine.backend("good"), upstream=SELDOM)
    await dead.stop()
    response = await post(gateway, app, stream=stream)

    assert content_of(response) == " lorem ipsum dolor"
    assert response.headers["x-magnus-backend"] == "good"
    assert await failures_of(gateway, "dead") == 1
    await gateway.wait_for_totals(app, requests=1, ok=1, output_tokens=3)


FAILURES_BEFORE_THE_FIRST_BYTE = [
    hang_up,
    fail_inside,
    speak_another_protocol,
    stop_within_the_body,
    send_a_web_page,
    begin_with_an_error_event,
    end_before_the_first_event,
]


@pytest.mark.parametrize("respond", FAILURES_BEFORE_THE_FIRST_BYTE)
async def test_failure_before_the_first_byte_is_retried_on_another_engine(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine, app: str, respond: Respond
) -> None:
    faulty = await start_engine(respond)
    gateway = await start_gateway(faulty.backend("faulty"), simulated_engine.backend("good"))
    for stream in (False, True):
        response = await post(gateway, app, stream=stream)
        assert content_of(response) == " lorem ipsum dolor"
        assert response.headers["x-magnus-backend"] == "good"

    assert len(faulty.received) == 2
    await gateway.wait_for_totals(app, requests=2, ok=2, output_tokens=6)


async def test_without_another_engine_a_failure_is_a_bad_gateway(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    engines = [await start_engine(hang_up) for _ in range(2)]
    gateway = await start_gateway(engines[0].backend("a"), engines[1].backend("b"), upstream=SELDOM)
    for engine in engines:
        await engine.stop()

    assert error_of(await post(gateway, app), 502)["code"] == "backend_unavailable"
    assert (await failures_of(gateway, "a"), await failures_of(gateway, "b")) == (1, 2)  # the last one is tried again
    await gateway.wait_for_totals(app, requests=1, failed=1)


async def test_engine_that_was_never_reachable_is_unavailable(start_gateway: StartGateway, app: str) -> None:
    gateway = await start_gateway({"name": "a", "kind": "vllm", "url": NOWHERE}, ready=False)

    assert error_of(await post(gateway, app), 503)["code"] == "no_backend"
    assert (await gateway.http.get("/health/ready")).status_code == 503
    assert (await gateway.http.get("/health/live")).status_code == 200


@pytest.mark.parametrize(
    ("respond", "status", "code"),
    [
        (hang_up, 502, "backend_unavailable"),
        (speak_another_protocol, 502, "backend_unavailable"),
        (stop_within_the_body, 502, "backend_unavailable"),
        (send_a_web_page, 502, "backend_protocol_error"),
        (begin_with_an_error_event, 502, "backend_protocol_error"),
        (end_before_the_first_event, 502, "backend_unavailable"),
        (fail_inside, 500, None),
        (be_silent, 504, "backend_timeout"),
    ],
)
async def test_failure_of_the_only_engine_has_openais_format(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, respond: Respond, status: int, code: str | None
) -> None:
    faulty = await start_engine(respond)
    gateway = await start_gateway(faulty.backend("faulty"), upstream={"first_byte_timeout_s": 0.5})

    assert error_of(await post(gateway, app), status)["code"] == code
    assert len(faulty.received) == 1
    await gateway.wait_for_totals(app, requests=1, failed=1)


@pytest.mark.parametrize(
    ("respond", "code"),
    [
        (die_within_the_stream, "backend_unavailable"),
        (end_the_stream_too_soon, "backend_unavailable"),
        (fail_within_the_stream, "backend_protocol_error"),
        (fall_silent_within_the_stream, "backend_timeout"),
    ],
)
async def test_broken_stream_ends_in_an_error_event_without_done(
    start_engine: StartEngine,
    start_gateway: StartGateway,
    simulated_engine: Engine,
    app: str,
    respond: Respond,
    code: str,
) -> None:
    faulty = await start_engine(respond)
    gateway = await start_gateway(
        faulty.backend("faulty"), simulated_engine.backend("good"), upstream={"idle_timeout_s": 0.5}
    )
    error = broken_stream(await post(gateway, app, stream=True), after="one two")

    assert error["code"] == code
    assert error["message"]
    totals = await gateway.wait_for_totals(app, requests=1, failed=1)
    assert totals["ok"] == 0


async def test_openais_client_raises_if_a_stream_breaks(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    faulty = await start_engine(fail_within_the_stream)
    gateway = await start_gateway(faulty.backend("faulty"))
    async with gateway.sdk() as sdk:
        with pytest.raises(openai.APIError, match="EngineCore died"):
            await _read_all(sdk)


async def _read_all(sdk: AsyncOpenAI) -> None:
    async for _ in await sdk.chat.completions.create(**chat(stream=True)):
        continue


async def test_request_to_a_full_engine_is_served_later(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    refusals = iter([whole(b'{"error":{"message":"full","type":"ServiceUnavailableError"}}', status="503 Full")] * 2)

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(next(refusals, answer("here", tokens=4)))

    full = await start_engine(respond)
    gateway = await start_gateway(full.backend("full"))
    response = await post(gateway, app)

    assert content_of(response) == "here"
    assert len(full.received) == 3
    await gateway.wait_for_totals(app, requests=1, ok=1, output_tokens=4)


async def test_request_to_a_full_engine_goes_to_one_with_room(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine, app: str
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b'{"error":{"message":"full"}}', status="503 Full"))

    full = await start_engine(respond)
    gateway = await start_gateway(full.backend("full"), simulated_engine.backend("good"))
    response = await post(gateway, app)

    assert response.headers["x-magnus-backend"] == "good"
    assert len(full.received) == 1
    await gateway.wait_for_totals(app, requests=1, ok=1)


async def test_answer_ends_with_done_although_the_engine_keeps_the_connection(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + token("x", finish_reason="stop") + DONE)
        await writer.drain()
        await asyncio.Event().wait()

    slow = await start_engine(respond)
    gateway = await start_gateway(slow.backend("slow"))
    request = gateway.http.stream("POST", "/v1/chat/completions", json=chat(stream=True), headers={"x-app-id": app})
    async with request as response:
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                break

    totals = await gateway.wait_for_totals(app, requests=1)
    assert (totals["ok"], totals["cancelled"], totals["failed"]) == (1, 0, 0)


async def test_request_is_evicted_after_the_queue_timeout(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    held = HeldBack()
    busy = await start_engine(held)
    gateway = await start_gateway(busy.backend("busy", max_concurrency=1), scheduling={"queue_timeout_s": 1})
    first = asyncio.create_task(post(gateway, app))
    await until(busy.has_received(1), "the engine has the first request")
    error = error_of(await post(gateway, app), 504)
    held.go.set()

    assert (error["code"], error["type"]) == ("queue_timeout", "timeout_error")
    assert content_of(await first) == "hello"
    assert len(busy.received) == 1
    await gateway.wait_for_totals(app, requests=2, ok=1, evicted=1)


@both_ways
async def test_client_that_disconnects_from_the_queue_is_removed(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, stream: bool
) -> None:
    held = HeldBack()
    busy = await start_engine(held)
    gateway = await start_gateway(busy.backend("busy", max_concurrency=1))
    running = asyncio.create_task(post(gateway, app))
    await until(busy.has_received(1), "the engine has the first request")
    waiting = asyncio.create_task(post(gateway, app, stream=stream))
    await until(gateway.shows("magnus_queue_waiting", 1), "the second waits")
    waiting.cancel()
    await gateway.wait_for_totals(app, cancelled=1)
    queue = (await gateway.stats())["queue"]
    held.go.set()

    assert (queue["waiting"], queue["oldest_ms"]) == (0, None)
    assert content_of(await running) == "hello"
    assert len(busy.received) == 1
    await gateway.wait_for_totals(app, requests=2, ok=1, cancelled=1)


async def test_full_queue_rejects_with_retry_after(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    held = HeldBack()
    busy = await start_engine(held)
    gateway = await start_gateway(busy.backend("busy", max_concurrency=1), scheduling={"max_queue": 2})
    requests = []
    for waiting in (0, 1, 2):
        requests.append(asyncio.create_task(post(gateway, app)))
        await until(busy.has_received(1), "one request runs")
        await until(gateway.shows("magnus_queue_waiting", waiting), f"{waiting} wait")
    rejected = await post(gateway, app)
    held.go.set()

    assert error_of(rejected, 429)["type"] == "rate_limit_error"
    assert int(rejected.headers["retry-after"]) >= 1
    assert [content_of(response) for response in await asyncio.gather(*requests)] == ["hello"] * 3
    await gateway.wait_for_totals(app, requests=4, ok=3, rejected=1)


async def test_gateway_serves_and_journals_without_a_database(
    start_gateway: StartGateway, simulated_engine: Engine, database_url: str, tmp_path: Path, app: str
) -> None:
    away = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"
    settings = settings_of(away, tmp_path, [simulated_engine.backend()])
    async with serving(settings) as gateway:
        assert content_of(await post(gateway, app)) == " lorem ipsum dolor"

        async def journaled() -> bool:
            return (await gateway.stats())["history"]["journaled"] == 1

        await until(journaled, "the record is in the journal")
        stats = await gateway.stats()
    kept = "".join(path.read_text() for path in (tmp_path / "journal").iterdir() if path.suffix == ".jsonl")
    later = await start_gateway(simulated_engine.backend())

    assert (stats["history"]["available"], stats["apps"], stats["totals"]) == (False, [], {})
    assert app in kept
    await later.wait_for_totals(app, requests=1, ok=1, output_tokens=3)
