"""TGI behind the gateway: the server generated from its OpenAPI document, and simulated ones of three versions."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from huggingface_hub import AsyncInferenceClient

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening as simulated
from tests.conformance.openapi_server import OpenApiServer, listening
from tests.conformance.test_tgi_document import DOCUMENT, ENDING, FACTS, METRICS, OPENAI_ROUTES
from tests.e2e.gateway import Gateway, serving, settings_of

HELLO: Any = [{"role": "user", "content": "hello"}]
AWAY = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"


def in_front_of(url: str, folder: Path) -> Any:
    return serving(settings_of(AWAY, folder, [{"name": "gpu-0", "kind": "tgi", "url": url}]))


@pytest.fixture
def document() -> OpenApiServer:
    return OpenApiServer(DOCUMENT, FACTS, ENDING, pages={"/metrics": METRICS}, done=OPENAI_ROUTES)


@pytest_asyncio.fixture
async def on_document(document: OpenApiServer, tmp_path: Path) -> AsyncIterator[Gateway]:
    async with listening(document) as url, in_front_of(url, tmp_path) as gateway:
        yield gateway


@pytest_asyncio.fixture(params=["1", "2", "3"])
async def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Gateway]:
    config = EngineConfig(kind="tgi", model="tiny", tgi_version=request.param, speed=20.0)
    async with simulated(config) as url, in_front_of(url, tmp_path) as gateway:
        yield gateway


# The document has `arguments` where OpenAI has `parameters`. TGI accepts both.
TOOL = {"type": "function", "function": {"name": "f", "arguments": {"type": "object"}}}
CHATS = [
    {"max_tokens": 5},
    {"max_completion_tokens": 5, "stop": "x", "top_p": 1, "temperature": 0},
    {"max_tokens": 5, "tools": [TOOL]},
]


@pytest.mark.parametrize("fields", CHATS)
async def test_chats_conform_to_the_document(
    document: OpenApiServer, on_document: Gateway, fields: dict[str, Any]
) -> None:
    async with on_document.sdk() as sdk:
        answer = await sdk.chat.completions.create(model="tiny", messages=HELLO, **fields)
        streamed: Any = await sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True, **fields)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in streamed if chunk.choices])

    assert document.faults == []
    assert (answer.choices[0].message.content, answer.usage.completion_tokens) == ("word ", 4)
    assert text == "word " * 4


async def test_text_completions_conform_to_the_document(document: OpenApiServer, on_document: Gateway) -> None:
    async with on_document.sdk() as sdk:
        answer = await sdk.completions.create(model="tiny", prompt="hello", max_tokens=5, stop="x")
        streamed = await sdk.completions.create(model="tiny", prompt="hello", max_tokens=5, stream=True)
        text = "".join([chunk.choices[0].text async for chunk in streamed])

    assert document.faults == []
    assert (answer.choices[0].text, text) == ("word ", "word " * 4)


async def test_failed_generation_is_a_bad_gateway(document: OpenApiServer, on_document: Gateway) -> None:
    document.errors["/v1/chat/completions"] = (424, {"error": "shards are lost", "error_type": "generation"})
    async with on_document.sdk() as sdk:
        with pytest.raises(openai.APIStatusError) as failure:
            await sdk.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5)
    assert failure.value.status_code >= 500


@pytest.mark.parametrize("stream", [True, False])
async def test_every_version_chats_and_completes(gateway: Gateway, stream: bool) -> None:
    async with gateway.sdk() as sdk:
        chat: Any = await sdk.chat.completions.create(
            model="tiny", messages=HELLO, max_completion_tokens=1, stream=stream
        )
        text: Any = await sdk.completions.create(model="tiny", prompt="hello", max_tokens=1, stream=stream)
        if stream:
            said = "".join([chunk.choices[0].delta.content or "" async for chunk in chat if chunk.choices])
            continued = "".join([chunk.choices[0].text async for chunk in text if chunk.choices])
        else:
            said, continued = chat.choices[0].message.content, text.choices[0].text

    assert (said, continued) == (" lorem", " lorem")


async def test_hugging_faces_client_chats_through_the_gateway(gateway: Gateway) -> None:
    async with AsyncInferenceClient(base_url=f"{gateway.url}/v1", api_key="none", timeout=20) as client:
        answer = await client.chat_completion(HELLO, model="tiny", max_tokens=1)
        stream = await client.chat_completion(HELLO, model="tiny", max_tokens=1, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert (answer.choices[0].message.content, text) == (" lorem", " lorem")


async def test_request_that_the_first_version_does_not_support_is_a_bad_request(tmp_path: Path) -> None:
    async with (
        simulated(EngineConfig(kind="tgi", model="tiny", tgi_version="1")) as url,
        in_front_of(url, tmp_path) as gateway,
        gateway.sdk() as sdk,
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            await sdk.chat.completions.create(model="tiny", messages=HELLO, n=2)
    assert refusal.value.param == "n"
