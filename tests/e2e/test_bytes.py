"""Fields and events that the gateway does not know are forwarded unchanged in both directions."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.e2e.conftest import Served, StartEngine, StartGateway
from tests.e2e.engines import DONE, MODEL, STREAM_END, STREAM_HEAD, Received, answer, chunk, token, whole

pytestmark = pytest.mark.asyncio(loop_scope="session")

REQUEST = (
    b'{ "model":"tiny",  "messages": [{"role": "user", "content": "caf\\u00e9 \xc3\xa9", "x-part": [1.50, 1e3]}],\n'
    b'  "unheard_of": {"deep": [null, 1.0, "\\u0041"]}, "temperature": 0.70, "seed": 12345678901234567890 }'
)
WHOLE = (
    b'{"id":"abc" , "choices": [ {"index":0,"message":{"role":"assistant","content":"caf\\u00e9"},'
    b'"finish_reason":"stop","new_field":{"a":[1.0,2.50]}}],\n "usage":{"prompt_tokens":3,"completion_tokens":2,'
    b'"total_tokens":5,"details":{"x":1e2}},"unheard_of":[{"y":"\xc3\xa9"}]}'
)
EVENTS = (
    b": a comment\n\n",
    b'data: {"id":"abc", "choices":[{"index":0,"delta":{"content":"one"},"new_field":1.50}],"other":null}\n\n',
    b'event: unheard\nid: 7\ndata: {"choices" :[ {"index":0,"delta":{"content":" \\u00e9"}}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":null}],"system":"\xc3\xa9"}\n\n',
)
USAGE_EVENT = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'


async def test_request_reaches_the_engine_byte_for_byte(served_by: Served, app: str) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    gateway, fake = served_by(respond)
    headers = {
        "content-type": "application/json; charset=utf-8",
        "authorization": "Bearer the-callers-key",
        "x-app-id": app,
        "x-request-id": "req-1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    response = await gateway.http.post("/v1/chat/completions", content=REQUEST, headers=headers)

    assert response.status_code == 200
    (received,) = fake.received
    assert received.path == "/v1/chat/completions"
    assert received.body == REQUEST
    assert response.headers["x-request-id"] == "req-1"
    assert received.headers["x-request-id"] not in {"", "req-1"}
    assert received.headers["traceparent"] == headers["traceparent"]
    assert received.headers["authorization"] == "Bearer the-engines-own-key"
    assert "the-callers-key" not in str(received.headers)


async def test_chunked_body_reaches_the_engine_whole(served_by: Served, app: str) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(tokens=5))

    async def parts() -> AsyncIterator[bytes]:
        for at in range(0, len(REQUEST), 20):
            yield REQUEST[at : at + 20]
            await asyncio.sleep(0)

    gateway, fake = served_by(respond)
    response = await gateway.http.post("/v1/chat/completions", content=parts(), headers={"x-app-id": app})

    assert response.status_code == 200
    assert fake.received[0].body == REQUEST
    await gateway.wait_for_totals(app, ok=1, output_tokens=5)


async def test_only_the_usage_option_is_added_to_a_stream(served_by: Served) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + token("x", finish_reason="stop") + DONE + STREAM_END)

    gateway, fake = served_by(respond)
    fields = {"stream": msgspec.Raw(b"true"), "stream_options": msgspec.Raw(b'{"of_mine":1.50}')}
    sent = msgspec.json.decode(REQUEST, type=dict[str, msgspec.Raw]) | fields
    await gateway.http.post("/v1/chat/completions", content=msgspec.json.encode(sent))

    received = msgspec.json.decode(fake.received[0].body, type=dict[str, msgspec.Raw])
    options = msgspec.json.decode(received.pop("stream_options"), type=dict[str, msgspec.Raw])
    assert {name: bytes(raw) for name, raw in options.items()} == {"of_mine": b"1.50", "include_usage": b"true"}
    del sent["stream_options"]
    assert {name: bytes(raw) for name, raw in received.items()} == {name: bytes(raw) for name, raw in sent.items()}


async def test_whole_answer_reaches_the_client_byte_for_byte(served_by: Served, app: str) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(WHOLE))

    gateway, _ = served_by(respond)
    response = await gateway.http.post("/v1/chat/completions", content=REQUEST, headers={"x-app-id": app})

    assert response.content == WHOLE
    assert response.headers["content-type"] == "application/json"
    await gateway.wait_for_totals(app, ok=1, input_tokens=3, output_tokens=2)


@pytest.mark.parametrize("size", [1, 7, 10_000], ids="chunks of {}".format)
async def test_events_reach_the_client_byte_for_byte(served_by: Served, app: str, size: int) -> None:
    sent = b"".join([*EVENTS, USAGE_EVENT, b"data: [DONE]\n\n"])

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(0, len(sent), size):
            writer.write(chunk(sent[at : at + size]))
            await writer.drain()
        writer.write(STREAM_END)

    gateway, _ = served_by(respond)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
    usage_body = body | {"stream_options": {"include_usage": True}}
    without_usage, with_usage = [
        await gateway.http.post("/v1/chat/completions", json=fields, headers={"x-app-id": app})
        for fields in (body, usage_body)
    ]

    assert with_usage.content == sent
    assert without_usage.content == sent.replace(USAGE_EVENT, b"")
    await gateway.wait_for_totals(app, ok=2, input_tokens=6, output_tokens=4)


async def test_rejection_by_the_engine_is_forwarded_unchanged(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    refused = {"message": "no such thing as a bat", "type": "OddError", "param": "bat", "code": 1234}

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(msgspec.json.encode({"error": refused}), status="422 Unprocessable Entity"))

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"), fake.backend("other"))
    response = await gateway.http.post("/v1/chat/completions", content=REQUEST)

    assert (response.status_code, response.json()) == (422, {"error": refused})
    assert len(fake.received) == 1
