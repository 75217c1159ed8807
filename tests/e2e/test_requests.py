"""Requests that a proxy may easily break, and their answers: forwarded byte for byte, with their tokens counted."""

import asyncio
import base64
import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import DONE, MODEL, STREAM_END, STREAM_HEAD, FakeEngine, Received, chunk, whole
from tests.e2e.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "x": 1.50}}}]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
HELLO: Any = [{"role": "user", "content": "hello"}]


def body(**fields: Any) -> bytes:
    """Encode a request unlike any encoder of the project: with spaces, and with every optional escape of JSON."""
    messages = fields.pop("messages", HELLO)
    return json.dumps({"model": MODEL, "messages": messages, **fields}, separators=(" , ", " : ")).encode()


def event(**choice: Any) -> bytes:
    return f"data: {json.dumps({'id': 'x', 'choices': [{'index': 0, **choice}]})}\n\n".encode()


def call_piece(**function: str) -> bytes:
    return event(delta={"tool_calls": [{"index": 0, "function": function}]}, finish_reason=None)


async def through(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, sent: bytes, answered: bytes, path: str
) -> tuple[FakeEngine, Gateway, bytes]:
    """Send a body through the gateway to an engine that answers these bytes, streamed if they are events."""

    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        if not answered.startswith(b"data:"):
            writer.write(whole(answered))
            return
        writer.write(STREAM_HEAD)
        for at in range(0, len(answered), 1000):
            writer.write(chunk(answered[at : at + 1000]))
            await writer.drain()
        writer.write(STREAM_END)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    response = await gateway.http.post(path, content=sent, headers={"x-app-id": app})
    assert response.status_code == 200, response.text
    return fake, gateway, response.content


IMAGE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 60_000).decode()
WITH_IMAGE = [
    {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]}
]
AFTER_A_CALL = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "c", "content": "42 \ud83e\udd99"},
]
LOGPROBS = {"content": [{"token": "a", "logprob": -0.10, "bytes": [97], "top_logprobs": [{"token": "b"}]}]}
CALL = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": '{"a": "\\u00e9"}'}}

WHOLE = [
    pytest.param(
        {"tools": TOOLS, "tool_choice": "auto"}, {"message": {"content": None, "tool_calls": [CALL]}}, id="tools"
    ),
    pytest.param({"messages": AFTER_A_CALL}, {"message": {"content": "so"}}, id="result of a tool"),
    pytest.param(
        {"logprobs": True, "top_logprobs": 5}, {"message": {"content": "a"}, "logprobs": LOGPROBS}, id="logprobs"
    ),
    pytest.param({"messages": WITH_IMAGE}, {"message": {"content": "a llama"}}, id="20 MB of image"),
    pytest.param(
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": 1.50}}}},
        {"message": {"content": '{"x": 1}'}},
        id="response format",
    ),
    pytest.param(
        {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": True}},
        {"message": {"content": "so", "reasoning_content": "hm", "reasoning": "hm"}},
        id="reasoning",
    ),
    pytest.param({"vllm_xargs": {"a": [1e3]}}, {"message": {"content": "a"}}, id="unknown"),
]


@pytest.mark.parametrize(("fields", "choice"), WHOLE)
async def test_whole_answers_are_forwarded(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, fields: dict[str, Any], choice: dict[str, Any]
) -> None:
    sent = body(**fields)
    answered = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", **choice}], "usage": USAGE}).encode()
    fake, gateway, content = await through(start_engine, start_gateway, app, sent, answered, "/v1/chat/completions")

    assert fake.received[0].body == sent
    assert content == answered
    await gateway.wait_for_totals(app, ok=1, input_tokens=7, output_tokens=5)


STREAMS = [
    pytest.param(
        {"tools": TOOLS},
        [call_piece(name="look_up", arguments=""), *[call_piece(arguments=part) for part in ('{"', 'a":', " 1}")]],
        id="calls of tools",
    ),
    pytest.param(
        {},
        [event(delta={"reasoning_content": "h\u00e9"}, finish_reason=None)] * 3
        + [event(delta={"content": "so"}, finish_reason=None)],
        id="reasoning",
    ),
    pytest.param({"logprobs": True}, [event(delta={"content": "a"}, logprobs=LOGPROBS)] * 4, id="logprobs"),
    pytest.param(
        {"n": 2},
        [
            *(event(index=number % 2, delta={"content": "a"}, finish_reason=None) for number in range(4)),
            event(index=1, delta={}, finish_reason="stop"),
        ],
        id="several answers",
    ),
]
END = event(delta={}, finish_reason="stop")
USAGE_EVENT = f"data: {json.dumps({'choices': [], 'usage': USAGE})}\n\n".encode()


@pytest.mark.parametrize("told", [True, False], ids=["usage told", "usage not told"])
@pytest.mark.parametrize(("fields", "events"), STREAMS)
async def test_streams_are_forwarded_and_counted(
    start_engine: StartEngine,
    start_gateway: StartGateway,
    app: str,
    fields: dict[str, Any],
    events: list[bytes],
    told: bool,
) -> None:
    sent = body(stream=True, **fields)
    answered = b"".join([*events, END, USAGE_EVENT if told else b"", b"data: [DONE]\n\n"])
    fake, gateway, content = await through(start_engine, start_gateway, app, sent, answered, "/v1/chat/completions")

    assert fake.received[0].body == sent[:-1] + b',"stream_options":{"include_usage":true}}'
    assert content == answered.replace(USAGE_EVENT, b"")
    counted = USAGE["completion_tokens"] if told else len(events) + 1
    await gateway.wait_for_totals(app, ok=1, output_tokens=counted)


@pytest.mark.parametrize(
    "prompt",
    ["one", ["one", "two \u00e9"], [1, 2, 3], [[1, 2], [3]]],
    ids=["text", "texts", "tokens", "lists of tokens"],
)
async def test_prompts_of_every_form_are_forwarded(
    start_engine: StartEngine, start_gateway: StartGateway, app: str, prompt: Any
) -> None:
    sent = json.dumps({"model": MODEL, "prompt": prompt, "echo": True, "logprobs": 3}, indent=1).encode()
    answered = json.dumps({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}], "usage": USAGE}).encode()
    fake, gateway, content = await through(start_engine, start_gateway, app, sent, answered, "/v1/completions")

    assert (fake.received[0].body, content) == (sent, answered)
    await gateway.wait_for_totals(app, ok=1, output_tokens=5)


async def test_openais_client_joins_streamed_tool_calls(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        pieces = [call_piece(name="look_up", arguments=""), call_piece(arguments='{"a'), call_piece(arguments='": 1}')]
        writer.write(STREAM_HEAD + b"".join(map(chunk, [*pieces, END])) + DONE + STREAM_END)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    async with gateway.sdk(app) as sdk:
        assert await called(sdk) == ("look_up", '{"a": 1}')


async def called(sdk: AsyncOpenAI) -> tuple[str, str]:
    name = arguments = ""
    async for part in await sdk.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, stream=True):
        for call in part.choices[0].delta.tool_calls or ():
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    return name, arguments


# The priority field


async def test_priority_is_added_only_where_the_engine_supports_it(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        choice = {"index": 0, "message": {"content": "a"}, "text": "a", "finish_reason": "stop"}
        writer.write(whole(json.dumps({"choices": [choice], "usage": USAGE}).encode()))

    heeding = await start_engine(respond)
    gateway = await start_gateway(heeding.backend("heeding", priority=True))
    sent, ranked = body(), body(priority=9)
    for each in (sent, ranked):
        assert (await gateway.http.post("/v1/chat/completions", content=each)).status_code == 200

    added = heeding.received[0].body
    assert added.startswith(sent[:-1] + b',"priority":')
    assert isinstance(json.loads(added)["priority"], int)
    replaced = json.loads(heeding.received[1].body)
    assert isinstance(replaced["priority"], int)
    assert replaced["priority"] != 9
    assert {**replaced, "priority": 9} == json.loads(ranked)
