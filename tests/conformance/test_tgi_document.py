"""The adapter for TGI against a server that is generated from TGI's OpenAPI document."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from backends.base import Backend, BackendSpec, EngineError, ModelCard, Snapshot
from backends.registry import connect
from tests.conformance.openapi_server import Document, OpenApiServer, listening

DOCUMENT = Document(Path(__file__).with_name("data") / "tgi-3.3-openapi.json")
METRICS = (
    b"tgi_queue_size 0\ntgi_batch_current_size 2\ntgi_batch_current_max_tokens 700\ntgi_batch_max_total_tokens 8192\n"
)
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
FACTS: dict[str, dict[str, Any]] = {
    "Info": {"model_id": "tiny", "max_total_tokens": 2048, "version": "3.3.6-dev0"},
    "Usage": USAGE,
    "ChatCompletionComplete": {"finish_reason": "stop"},
    "CompletionComplete": {"finish_reason": "stop"},
    "GenerateResponse": {
        "details": {"finish_reason": "length", "generated_tokens": 4, "prefill": [], "tokens": []},
    },
    "TextMessage": {"role": "assistant"},
}
ENDING: dict[str, dict[str, Any]] = {
    "ChatCompletionChunk": {"usage": USAGE},
    "ChatCompletionChoice": {"finish_reason": "stop"},
    "StreamResponse": {
        "generated_text": "word word word word ",
        "details": {"finish_reason": "length", "generated_tokens": 4, "input_length": 5},
    },
}
OPENAI_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
COMPLETION = {"model": "tiny", "prompt": "hello"}


@pytest.fixture
def engine() -> OpenApiServer:
    return OpenApiServer(DOCUMENT, FACTS, ENDING, pages={"/metrics": METRICS}, done=OPENAI_ROUTES)


@pytest_asyncio.fixture
async def url(engine: OpenApiServer) -> AsyncIterator[str]:
    async with listening(engine) as url:
        yield url


@pytest_asyncio.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        yield client


@pytest_asyncio.fixture
async def backend(url: str) -> AsyncIterator[Backend]:
    async with httpx2.AsyncHTTPTransport() as transport:
        yield connect(BackendSpec("gpu-0", "tgi", url), transport, 10.0)


def a_tgi_without_openais_routes(engine: OpenApiServer) -> None:
    engine.facts = FACTS | {"Info": {**FACTS["Info"], "version": "1.3.4"}}


async def send(http: httpx2.AsyncClient, backend: Backend, path: str, request: dict[str, object]) -> bytes:
    """Send the adapter's request, and return the adapter's reading of the answer."""
    body = json.dumps(request).encode()
    translation = backend.translate(path, body)
    if translation is None:
        return (await http.post(path, content=body)).content
    response = await http.post(translation.path, content=translation.body)
    assert response.status_code == 200, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        return translation.feed(response.content)
    return translation.whole(response.content)


def events(stream: bytes) -> list[dict[str, Any]]:
    *lines, done = [line.removeprefix("data: ") for line in stream.decode().split("\n\n") if line]
    assert done == "[DONE]"
    return [json.loads(line) for line in lines]


async def test_scrape_reads_the_values_of_the_document(backend: Backend) -> None:
    assert await backend.scrape() == Snapshot(
        models=(ModelCard("tiny", 2048),), kv_capacity_tokens=8192, kv_used_tokens=700, running=2, waiting=0
    )


@pytest.mark.parametrize(
    ("path", "request_fields"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stop": "x", "max_completion_tokens": 5, "top_p": 1, "temperature": 0}),
        ("/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
        ("/v1/completions", COMPLETION),
        ("/v1/completions", {**COMPLETION, "prompt": ["a", "b"], "stop": "x", "max_tokens": 3}),
        ("/v1/completions", {**COMPLETION, "stream": True}),
    ],
)
@pytest.mark.parametrize("native", [False, True])
async def test_requests_conform_to_the_document(
    engine: OpenApiServer,
    backend: Backend,
    http: httpx2.AsyncClient,
    path: str,
    request_fields: dict[str, object],
    native: bool,
) -> None:
    if native:
        a_tgi_without_openais_routes(engine)
        if isinstance(request_fields.get("prompt"), list):
            request_fields = request_fields | {"prompt": "a"}
    await backend.scrape()

    answer = await send(http, backend, path, request_fields)

    assert engine.faults == []
    used = {path for path, _ in engine.requests}
    assert used == ({"/generate_stream" if request_fields.get("stream") else "/generate"} if native else {path})
    last = events(answer)[-1] if request_fields.get("stream") else json.loads(answer)
    assert last["choices"] == [] or last["choices"][0]["finish_reason"] in ("stop", "length")


async def test_native_answer_is_translated_for_openais_client(
    engine: OpenApiServer, backend: Backend, http: httpx2.AsyncClient
) -> None:
    a_tgi_without_openais_routes(engine)
    await backend.scrape()
    request = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}

    *chunks, usage = events(await send(http, backend, "/v1/chat/completions", request))

    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == "word " * 4
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


@pytest.mark.parametrize(
    ("status", "error", "kind", "full", "failed"),
    [
        (422, "validation", "invalid_request_error", False, False),
        (424, "generation", "generation", False, True),
        (429, "overloaded", "overloaded", True, False),
        (
            500,
            "incomplete_generation",
            "incomplete_generation",
            False,
            True,
        ),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions"])
async def test_errors_of_the_document_are_read(
    engine: OpenApiServer,
    backend: Backend,
    http: httpx2.AsyncClient,
    path: str,
    status: int,
    error: str,
    kind: str,
    full: bool,
    failed: bool,
) -> None:
    engine.errors[path] = (status, {"error": "why", "error_type": error})
    response = await http.post(path, json=CHAT | {"inputs": "hello"})

    parsed_error = backend.read_error(response.status_code, response.content)

    assert (response.status_code, parsed_error) == (status, EngineError("why", kind, code=error))
    assert (backend.is_queue_full(status, parsed_error), backend.has_failed(status, parsed_error)) == (full, failed)


async def test_server_rejects_what_the_document_does_not_allow(engine: OpenApiServer, http: httpx2.AsyncClient) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | {"stop": "x"})
    assert response.status_code == 422
    assert len(engine.faults) == 1
    assert (await http.post("/v1/embeddings", json={})).status_code == 404
