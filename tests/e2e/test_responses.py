"""OpenAI's Responses API, on the real vLLM and on a fake engine with the same format."""

import asyncio
import json

import openai
import pytest

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import MODEL, STREAM_END, STREAM_HEAD, Engine, Received, chunk, whole

pytestmark = pytest.mark.asyncio(loop_scope="session")

ANSWER = b'{"id":"r","object":"response","status":"completed","output":[],"usage":{"input_tokens":7,"output_tokens":2}}'


def event(kind: str, **fields: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({**fields, 'type': kind})}\n\n".encode()


BEGUN = event("response.created", response=json.loads(ANSWER) | {"status": "in_progress", "usage": None}) + event(
    "response.output_text.delta", delta="hé 🦙", item_id="i", output_index=0, content_index=0, logprobs=[]
)
END = event("response.completed", response=json.loads(ANSWER))


@pytest.mark.vllm
@pytest.mark.timeout(300)
async def test_real_vllm_answers_whole_and_streamed(vllm_engine: Engine, start_gateway: StartGateway, app: str) -> None:
    gateway = await start_gateway(vllm_engine.backend(priority=True))
    async with gateway.sdk(app) as sdk:
        answer = await sdk.responses.create(model=MODEL, input="hello", max_output_tokens=5, user="ann")
        text, last = "", None
        async for part in await sdk.responses.create(model=MODEL, input="hello", max_output_tokens=4, stream=True):
            text += part.delta if part.type == "response.output_text.delta" else ""
            last = part

    assert answer.output_text
    assert text
    assert last is not None
    assert last.type == "response.completed"
    tokens = answer.usage.output_tokens + last.response.usage.output_tokens
    totals = await gateway.wait_for_totals(app, ok=2, output_tokens=tokens)
    assert totals["input_tokens"] == answer.usage.input_tokens + last.response.usage.input_tokens


async def test_answer_and_stream_are_forwarded_byte_for_byte(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def respond(request: Received, writer: asyncio.StreamWriter) -> None:
        if b'"stream": true' in request.body:
            writer.write(STREAM_HEAD + chunk(BEGUN[:50]) + chunk(BEGUN[50:]) + chunk(END) + STREAM_END)
        else:
            writer.write(whole(ANSWER))

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    bodies = [
        b'{"model": "tiny", "input": "hi", "store" : false }',
        b'{"model": "tiny", "input": "hi", "stream": true}',
    ]
    answers = [await gateway.http.post("/v1/responses", content=body, headers={"x-app-id": app}) for body in bodies]

    assert [answer.content for answer in answers] == [ANSWER, BEGUN + END]
    assert [(received.path, received.body) for received in fake.received] == [("/v1/responses", b) for b in bodies]
    await gateway.wait_for_totals(app, ok=2, input_tokens=14, output_tokens=4)


async def test_broken_stream_raises_in_openais_client(
    start_engine: StartEngine, start_gateway: StartGateway, app: str
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(BEGUN) + STREAM_END)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    async with gateway.sdk(app) as sdk:
        with pytest.raises(openai.APIError, match="ended before the answer was complete"):
            await read_all(sdk)
    await gateway.wait_for_totals(app, requests=1, failed=1)


async def read_all(sdk: openai.AsyncOpenAI) -> None:
    async for _ in await sdk.responses.create(model=MODEL, input="hi", stream=True):
        continue


async def test_background_responses_are_rejected(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(ANSWER))

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    response = await gateway.http.post("/v1/responses", json={"model": MODEL, "input": "hi", "background": True})

    assert (response.status_code, response.json()["error"]["param"]) == (400, "background")
    assert fake.received == []
