"""Anthropic's API through Anthropic's client, on a simulated engine and on a real vLLM."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic import AsyncAnthropic

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from tests.e2e.conftest import Served, StartEngine, StartGateway, both_ways
from tests.e2e.engines import CONTEXT_TOKENS, MODEL, STREAM_HEAD, Engine, Received, chunk, whole
from tests.e2e.gateway import DEADLINE_S, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

LONG = CONTEXT_TOKENS - 200

REQUEST = (
    b'{ "model":"tiny",  "messages": [{"role": "user", "content": [{"type":"text","text":"caf\\u00e9"}]}],\n'
    b'  "max_tokens": 5, "unheard_of": {"deep": [null, 1.0]}, "temperature": 0.70 }'
)
ANSWER = (
    b'{"id":"m" , "type":"message","role":"assistant","content":[{"type":"text","text":"h\\u00e9"}],"model":"tiny",'
    b'"stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":2,"x":1.50}, "new":[1e2]}'
)
EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":7,'
    b'"output_tokens":0}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n',
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"h\xc3\xa9 \xf0\x9f\xa6\x99"}}\n\n',
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n',
)
END = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
    b'"usage":{"output_tokens":2}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(gateway: Gateway, app: str) -> AsyncIterator[AsyncAnthropic]:
    async with client_of(gateway, app) as client:
        yield client


def client_of(gateway: Gateway, app: str) -> AsyncAnthropic:
    return AsyncAnthropic(
        base_url=gateway.url, api_key="none", max_retries=0, timeout=DEADLINE_S, default_headers={"X-App-Id": app}
    )


def body_of(refusal: Any) -> Any:
    return refusal.value.body


def message_fields(tokens: int = 8, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}], **fields}


async def test_stream_has_the_content_of_the_whole_answer(sdk: AsyncAnthropic, gateway: Gateway, app: str) -> None:
    greedy: dict[str, Any] = {"system": "Be brief.", "extra_body": {"temperature": 0}}
    whole_one: Any = await sdk.messages.create(**message_fields(**greedy))
    async with sdk.messages.stream(**message_fields(**greedy)) as stream:
        text = "".join([part async for part in stream.text_stream])
        streamed = await stream.get_final_message()

    assert text
    assert [block.text for block in whole_one.content] == [text]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (
        whole_one.stop_reason,
        whole_one.usage.output_tokens,
    )
    tokens = sum(answer.usage.output_tokens for answer in (whole_one, streamed))
    totals = await gateway.wait_for_totals(app, ok=2, output_tokens=tokens)
    assert totals["input_tokens"] > 0


async def test_user_comes_from_the_metadata(sdk: AsyncAnthropic, gateway: Gateway, app: str) -> None:
    for user in ("ann", "ann", "bob"):
        await sdk.messages.create(**message_fields(3, metadata={"user_id": user}))

    await gateway.wait_for_totals(app, ok=3)
    users = (await gateway.stats(app=app))["users"]
    assert {user["user"]: user["requests"] for user in users} == {"ann": 2, "bob": 1}


@both_ways
async def test_response_has_the_headers_of_the_gateway(sdk: AsyncAnthropic, stream: bool) -> None:
    create = sdk.messages.with_streaming_response.create
    async with create(**message_fields(3, stream=stream), extra_headers={"X-Request-Id": "my-own-7"}) as response:
        await response.text()

    assert response.headers["x-request-id"] == "my-own-7"
    assert int(response.headers["x-magnus-predicted-tokens"]) >= 1
    assert response.headers["x-magnus-backend"] == "gpu-0"


async def test_tokens_are_counted_without_a_generation(sdk: AsyncAnthropic, gateway: Gateway, app: str) -> None:
    counted = await sdk.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hello"}])
    answer = await sdk.messages.create(**message_fields(3))

    assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    await gateway.wait_for_totals(app, requests=1, ok=1)
    assert await gateway.metric("magnus_requests_total", route="/v1/messages/count_tokens", status="ok") >= 1


@both_ways
async def test_rejections_are_anthropics_errors(sdk: AsyncAnthropic, stream: bool) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await sdk.messages.create(**message_fields(model="other", stream=stream))
    with pytest.raises(anthropic.BadRequestError) as too_long:
        await sdk.messages.create(
            **message_fields(messages=[{"role": "user", "content": "word and " * CONTEXT_TOKENS}], stream=stream)
        )
    with pytest.raises(anthropic.BadRequestError) as wrong:
        await sdk.messages.create(**message_fields(messages=[{"role": 7}], stream=stream))

    for refusal in (missing, too_long, wrong):
        assert body_of(refusal)["type"] == "error"
        assert set(body_of(refusal)["error"]) == {"type", "message"}
    assert body_of(missing)["error"]["type"] == "not_found_error"
    assert body_of(too_long)["error"]["type"] == "invalid_request_error"


@both_ways
async def test_client_that_disconnects_frees_the_engine(
    engine: Engine, sdk: AsyncAnthropic, gateway: Gateway, app: str, stream: bool
) -> None:
    await until(engine.is_empty, "the engine is empty")

    async def request_and_wait() -> None:
        answer = await sdk.messages.create(**message_fields(LONG, stream=stream))
        if stream:
            async for _ in answer:
                continue

    await engine.disconnect_while_it_works(request_and_wait())

    await gateway.wait_for_totals(app, requests=1, cancelled=1)


# Forwarded bytes


async def test_request_and_answer_are_forwarded_byte_for_byte(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(ANSWER))

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake", priority=True, api_key="the-engines-own-key"))
    headers = {"x-api-key": "the-callers-key", "anthropic-version": "2023-06-01", "x-app-id": app}
    response = await gateway.http.post("/v1/messages", content=REQUEST, headers=headers)

    assert (response.status_code, response.content) == (200, ANSWER)
    (received,) = fake.received
    assert (received.path, received.body) == ("/v1/messages", REQUEST)
    assert received.headers["anthropic-version"] == "2023-06-01"
    assert received.headers["authorization"] == "Bearer the-engines-own-key"
    assert "the-callers-key" not in str(received.headers)
    await gateway.wait_for_totals(app, ok=1, input_tokens=7, output_tokens=2)


@pytest.mark.parametrize("size", [1, 7, 10_000], ids="chunks of {}".format)
async def test_events_are_forwarded_byte_for_byte(served_by: Served, app: str, size: int) -> None:
    sent = b"".join(EVENTS) + END

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(0, len(sent), size):
            writer.write(chunk(sent[at : at + size]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    gateway, fake = served_by(respond)
    response = await gateway.http.post("/v1/messages", json=message_fields(5, stream=True), headers={"x-app-id": app})

    assert response.content == sent
    assert b'"stream_options"' not in fake.received[0].body
    await gateway.wait_for_totals(app, ok=1, input_tokens=7, output_tokens=2)


@pytest.mark.parametrize(
    "failure",
    [
        b'event: error\ndata: {"type":"error","error":{"type":"internal_error","message":"EngineCore died"}}\n\n',
        b'data: {"error":{"message":"EngineCore died","code":500}}\n\ndata: [DONE]\n\n',
        b"",
    ],
    ids=["Anthropic's error", "OpenAI's error", "the end"],
)
async def test_broken_stream_ends_in_anthropics_error_event(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, failure: bytes
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"".join(map(chunk, (*EVENTS, *([failure] if failure else [])))) + b"0\r\n\r\n")

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    async with client_of(gateway, app) as sdk:
        text: list[str] = []
        with pytest.raises(anthropic.APIStatusError) as broken:
            await read_into(text, sdk)

    assert text == ["hé 🦙"]
    assert body_of(broken)["error"]["type"] == "api_error"
    await gateway.wait_for_totals(app, requests=1, failed=1)


async def read_into(text: list[str], sdk: AsyncAnthropic) -> None:
    async for event in await sdk.messages.create(**message_fields(5, stream=True)):
        if event.type == "content_block_delta":
            text.append(event.delta.text)


async def test_key_is_accepted_in_anthropics_header(start_gateway: StartGateway, simulated_engine: Engine) -> None:
    gateway = await start_gateway(simulated_engine.backend(), auth={"mode": "keys"})
    async with client_of(gateway, "x") as sdk:
        with pytest.raises(anthropic.AuthenticationError) as refused:
            await sdk.messages.create(**message_fields())
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "hello"}])

    assert body_of(refused)["error"]["type"] == "authentication_error"


@both_ways
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"error":{"code":404,"message":"File Not Found","type":"not_found_error"}}', "File Not Found"),
        (b"", "the engine answered 404 without an error message"),
    ],
    ids=["FastAPI's", "llama.cpp's", "an empty one"],
)
async def test_engine_without_the_route_is_not_found(
    served_by: Served, body: bytes, message: str, stream: bool
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(body, status="404 Not Found"))

    gateway, _ = served_by(respond)
    response = await gateway.http.post("/v1/messages", json=message_fields(stream=stream))

    assert (response.status_code, response.headers["content-type"]) == (404, "application/json")
    assert response.json() == {"type": "error", "error": {"type": "not_found_error", "message": message}}


async def test_tgi_has_no_such_route(start_gateway: StartGateway, app: str) -> None:
    async with listening(EngineConfig(kind="tgi", model=MODEL, speed=100.0)) as url:
        gateway = await start_gateway({"name": "old", "kind": "tgi", "url": url})
        async with client_of(gateway, app) as sdk:
            with pytest.raises(anthropic.NotFoundError) as missing:
                await sdk.messages.create(**message_fields())

    assert body_of(missing)["error"]["type"] == "not_found_error"
    assert missing.value.response.headers["x-magnus-backend"] == "old"
