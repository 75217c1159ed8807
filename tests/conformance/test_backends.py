"""The common behaviour of all adapters: one suite, run for every kind of engine against recorded pages."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Backend, BackendSpec, BackendUnreachableError, EngineError, ModelCard, Snapshot
from backends.registry import KINDS, connect

TIMEOUT_S = 0.05
DATA = Path(__file__).parents[1] / "unit" / "backends" / "data"

VLLM_MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"vllm","max_model_len":2048}]}'
OPENAI_MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"me"}]}'
TGI_INFO = (
    b'{"model_id":"tiny","model_sha":null,"model_pipeline_tag":"text-generation","max_concurrent_requests":128,'
    b'"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":1024,"max_total_tokens":2048,"validation_workers":2,'
    b'"max_client_batch_size":4,"router":"text-generation-router","version":"3.3.7","sha":null,"docker_label":null}'
)
TGI_2_INFO = (
    b'{"model_id":"tiny","model_sha":null,"model_dtype":"torch.float16","model_device_type":"cuda",'
    b'"model_pipeline_tag":"text-generation","max_concurrent_requests":128,"max_best_of":2,"max_stop_sequences":4,'
    b'"max_input_length":1024,"max_total_tokens":2048,"waiting_served_ratio":1.2,"max_batch_total_tokens":8192,'
    b'"max_waiting_tokens":20,"max_batch_size":null,"validation_workers":2,"max_client_batch_size":4,'
    b'"version":"2.0.4","sha":null,"docker_label":null}'
)
TGI_1_INFO = TGI_2_INFO.replace(b'"version":"2.0.4"', b'"version":"1.3.4"')
TGI_METRICS = (
    b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\ntgi_batch_current_size 0\ntgi_batch_current_max_tokens 0\n"
)
TGI_3_METRICS = TGI_METRICS + b"tgi_batch_max_total_tokens 8192\n"
SGLANG_METRICS = (
    b'sglang:num_running_reqs{model_name="tiny"} 0.0\nsglang:num_queue_reqs{model_name="tiny"} 0.0\n'
    b'sglang:token_usage{model_name="tiny"} 0.0\nsglang:max_total_num_tokens{model_name="tiny"} 8192.0\n'
)
LLAMA_CPP_METRICS = b"llamacpp:requests_processing 0\nllamacpp:requests_deferred 0\nllamacpp:kv_cache_usage_ratio 0\n"
OPENAI_ERROR = b'{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":400}}'
OLD_ERROR = b'{"object":"error","message":"too long","type":"invalid_request_error","param":null,"code":400}'
TGI_ERROR = b'{"error":"too long","error_type":"validation"}'


def page(version: str) -> bytes:
    return (DATA / f"vllm-{version}-metrics.txt").read_bytes()


@dataclass(frozen=True)
class Recording:
    """Recorded pages of an idle engine that has room for 8192 tokens and serves `tiny`.

    `translated` has the routes of OpenAI that the engine does not have.
    """

    kind: str
    models: bytes
    metrics: bytes
    error: bytes = OPENAI_ERROR
    error_status: int = 400
    models_path: str = "/v1/models"
    full_statuses: frozenset[int] = frozenset({503})
    failed_statuses: frozenset[int] = frozenset({500, 502, 503})
    capacity: int | None = 8192
    max_model_len: int | None = 2048
    translated: frozenset[str] = frozenset()

    @property
    def card(self) -> ModelCard:
        return ModelCard("tiny", self.max_model_len)


def tgi(info: bytes, metrics: bytes, *translated: str) -> Recording:
    return Recording(
        "tgi",
        info,
        metrics,
        error=TGI_ERROR,
        error_status=422,
        models_path="/info",
        full_statuses=frozenset({429}),
        failed_statuses=frozenset({424, 500, 502, 503}),
        translated=frozenset(translated),
    )


def openai(models: bytes, metrics: bytes, **known: Any) -> Recording:
    return Recording("openai", models, metrics, full_statuses=frozenset({429, 503}), **known)


RECORDINGS = {
    "vllm-0.6": Recording("vllm", VLLM_MODELS, page("0.6"), error=OLD_ERROR),
    "vllm-0.9": Recording("vllm", VLLM_MODELS, page("0.9"), error=OLD_ERROR),
    "vllm-0.32": Recording("vllm", VLLM_MODELS, page("0.32")),
    "vllm-0.32-two-ranks": Recording("vllm", VLLM_MODELS, page("0.32-two-ranks")),
    "tgi-1": tgi(TGI_1_INFO, TGI_METRICS, "/v1/completions", "/v1/chat/completions"),
    "tgi-2": tgi(TGI_2_INFO, TGI_METRICS),
    "tgi-3": tgi(TGI_INFO, TGI_3_METRICS),
    "sglang": openai(VLLM_MODELS, SGLANG_METRICS),
    "llama.cpp": openai(OPENAI_MODELS, LLAMA_CPP_METRICS, capacity=None, max_model_len=None),
    "static": Recording("static", VLLM_MODELS, page("0.32")),
}


class Page(httpx2.AsyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.body

    async def aclose(self) -> None:
        self.closed = True


class FakeEngine(httpx2.AsyncBaseTransport):
    """Answers each path with its page, its status or its error. None never answers. An unknown path is a 404."""

    def __init__(self, pages: dict[str, bytes | int | Exception | None]) -> None:
        self.pages = pages
        self.requests: list[httpx2.Request] = []
        self.bodies: list[Page] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.pages.get(request.url.path, 404)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        status, body = (200, answer) if isinstance(answer, bytes) else (answer, b"")
        self.bodies.append(Page(body))
        return httpx2.Response(status, stream=self.bodies[-1])


@pytest.fixture(params=RECORDINGS)
def recording(request: pytest.FixtureRequest) -> Recording:
    return RECORDINGS[request.param]


@pytest.fixture
def kind(recording: Recording) -> str:
    return recording.kind


@pytest.fixture
def engine(recording: Recording) -> FakeEngine:
    return FakeEngine({recording.models_path: recording.models, "/metrics": recording.metrics})


def backend(kind: str, engine: FakeEngine, **spec_fields: Any) -> Backend:
    return connect(BackendSpec(name="gpu-0", kind=kind, url="http://gpu-0:8000/", **spec_fields), engine, TIMEOUT_S)


def test_every_kind_of_engine_is_recorded():
    assert {recording.kind for recording in RECORDINGS.values()} == set(KINDS)


async def test_scrape_returns_models_memory_and_load(kind: str, recording: Recording, engine: FakeEngine):
    snapshot = await backend(kind, engine).scrape()
    assert snapshot.models == (recording.card,)
    used = None if recording.capacity is None else 0
    assert (snapshot.kv_capacity_tokens, snapshot.kv_used_tokens) == (recording.capacity, used)
    assert (snapshot.running, snapshot.waiting) == (0, 0)


async def test_every_response_is_closed(kind: str, engine: FakeEngine):
    await backend(kind, engine).scrape()
    assert len(engine.bodies) == 2
    assert all(body.closed for body in engine.bodies)


async def test_pages_are_requested_below_the_url_with_a_timeout(kind: str, recording: Recording, engine: FakeEngine):
    await backend(kind, engine).scrape()
    urls = {str(request.url) for request in engine.requests}
    assert urls == {f"http://gpu-0:8000{recording.models_path}", "http://gpu-0:8000/metrics"}
    assert all(request.extensions["timeout"]["read"] == TIMEOUT_S for request in engine.requests)


@pytest.mark.parametrize(("api_key", "header"), [("sesame", "Bearer sesame"), (None, None)])
async def test_key_is_sent_with_every_request(kind: str, engine: FakeEngine, api_key: str | None, header: str | None):
    await backend(kind, engine, api_key=api_key).scrape()
    assert {request.headers.get("authorization") for request in engine.requests} == {header}


async def test_capacity_of_the_operator_overrides_the_engines(kind: str, engine: FakeEngine):
    assert (await backend(kind, engine, kv_tokens=5000).scrape()).kv_capacity_tokens == 5000


async def test_models_of_the_operator_keep_the_context_length_of_the_engine(
    kind: str, recording: Recording, engine: FakeEngine
):
    assert (await backend(kind, engine, models=("tiny",)).scrape()).models == (recording.card,)


@pytest.mark.parametrize("metrics", [404, 500, None, b"", b"<html>\x00\xff{", b"{}", httpx2.ReadError("lost")])
async def test_engine_without_metrics_is_healthy_with_unknown_load(
    kind: str, recording: Recording, engine: FakeEngine, metrics: bytes | int | Exception | None
):
    engine.pages["/metrics"] = metrics
    capacity = 8192 if b"max_batch_total_tokens" in recording.models else None
    assert await backend(kind, engine).scrape() == Snapshot(models=(recording.card,), kv_capacity_tokens=capacity)


@pytest.mark.parametrize(
    "models",
    [401, 404, 307, 500, None, b"", b"<html>", b"{}", b'{"data":[{}]}', b"\xff", b"[" * 99999, httpx2.ConnectError("")],
)
async def test_engine_without_a_list_of_models_is_unreachable(
    kind: str, recording: Recording, engine: FakeEngine, models: bytes | int | Exception | None
):
    engine.pages[recording.models_path] = models
    with pytest.raises(BackendUnreachableError, match=f"'gpu-0': GET {recording.models_path}: .") as failure:
        await backend(kind, engine, api_key="sesame").scrape()
    assert "sesame" not in str(failure.value)


async def test_pages_are_requested_concurrently(kind: str, recording: Recording):
    everyone_is_here = asyncio.Barrier(2)

    class Meeting(FakeEngine):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await everyone_is_here.wait()
            return await super().handle_async_request(request)

    engine = Meeting({recording.models_path: recording.models, "/metrics": recording.metrics})
    assert (await backend(kind, engine).scrape()).running == 0


def test_error_for_a_wrong_request_has_openais_fields(kind: str, recording: Recording, engine: FakeEngine):
    error = backend(kind, engine).read_error(recording.error_status, recording.error)
    assert (error.message, error.type) == ("too long", "invalid_request_error")
    assert not backend(kind, engine).is_queue_full(recording.error_status, error)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 424, 429, 500, 502, 503])
def test_only_some_statuses_mean_a_full_queue(kind: str, recording: Recording, engine: FakeEngine, status: int):
    full = backend(kind, engine).is_queue_full(status, EngineError("busy", "overloaded"))
    assert full == (status in recording.full_statuses)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 424, 429, 500, 502, 503])
def test_only_some_statuses_are_failures_of_the_engine(
    kind: str, recording: Recording, engine: FakeEngine, status: int
):
    failed = backend(kind, engine).has_failed(status, EngineError("oh", "server_error"))
    assert failed == (status in recording.failed_statuses)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
async def test_only_requests_without_a_route_are_translated(
    kind: str, recording: Recording, engine: FakeEngine, path: str
):
    adapter = backend(kind, engine)
    body = b'{"model":"tiny","prompt":["x"],"messages":[{"role":"user","content":"x"}]}'
    assert adapter.translate(path, body) is None
    await adapter.scrape()
    assert (adapter.translate(path, body) is not None) == (path in recording.translated)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"prompt":', b"\xff", b"[" * 9999])
def test_malformed_request_is_left_to_the_engine(kind: str, engine: FakeEngine, path: str, body: bytes):
    assert backend(kind, engine).translate(path, body) is None


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(status=st.integers(400, 599), body=st.binary())
def test_every_error_body_can_be_read(kind: str, status: int, body: bytes):
    error = backend(kind, FakeEngine({})).read_error(status, body)
    assert error.message
    assert error.type


def test_error_body_of_unknown_format_is_quoted_in_part(kind: str, engine: FakeEngine):
    assert backend(kind, engine).read_error(502, b"x" * 501).message == "x" * 500
