"""What every adapter does, whatever its engine: one suite, run over all kinds against recorded pages."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import Backend, BackendSpec, BackendUnreachableError, EngineError, ModelCard, Snapshot
from backends.registry import KINDS, connect

TIMEOUT_S = 0.05
DATA = Path(__file__).parents[1] / "unit" / "backends" / "data"

VLLM_MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"vllm","max_model_len":2048}]}'
VLLM_METRICS = (DATA / "vllm-0.32-metrics.txt").read_bytes()
TGI_INFO = (
    b'{"model_id":"tiny","model_sha":null,"model_pipeline_tag":"text-generation","max_concurrent_requests":128,'
    b'"max_best_of":2,"max_stop_sequences":4,"max_input_tokens":1024,"max_total_tokens":2048,"validation_workers":2,'
    b'"max_client_batch_size":4,"router":"text-generation-router","version":"3.3.7","sha":null,"docker_label":null}'
)
TGI_METRICS = (
    b"# TYPE tgi_queue_size gauge\ntgi_queue_size 0\ntgi_batch_current_size 0\ntgi_batch_current_max_tokens 0\n"
    b"tgi_batch_max_total_tokens 8192\n"
)
SGLANG_METRICS = (
    b'sglang:num_running_reqs{model_name="tiny"} 0.0\nsglang:num_queue_reqs{model_name="tiny"} 0.0\n'
    b'sglang:token_usage{model_name="tiny"} 0.0\nsglang:max_total_num_tokens{model_name="tiny"} 8192.0\n'
)
OPENAI_ERROR = b'{"error":{"message":"too long","type":"invalid_request_error","param":null,"code":400}}'
TGI_ERROR = b'{"error":"too long","error_type":"validation"}'


@dataclass(frozen=True)
class Recording:
    """An idle engine of one kind with room for 8192 tokens, which serves `tiny`."""

    models_path: str
    models: bytes
    metrics: bytes
    error: bytes
    error_status: int
    full_statuses: frozenset[int]


RECORDINGS = {
    "vllm": Recording("/v1/models", VLLM_MODELS, VLLM_METRICS, OPENAI_ERROR, 400, frozenset({503})),
    "tgi": Recording("/info", TGI_INFO, TGI_METRICS, TGI_ERROR, 422, frozenset({429})),
    "openai": Recording("/v1/models", VLLM_MODELS, SGLANG_METRICS, OPENAI_ERROR, 400, frozenset({429, 503})),
    "static": Recording("/v1/models", VLLM_MODELS, VLLM_METRICS, OPENAI_ERROR, 400, frozenset({503})),
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
    """Answers each path with its page, its bare status or its error; None never answers, a path unknown is a 404."""

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


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recording(kind: str) -> Recording:
    return RECORDINGS[kind]


@pytest.fixture
def engine(recording: Recording) -> FakeEngine:
    return FakeEngine({recording.models_path: recording.models, "/metrics": recording.metrics})


def backend(kind: str, engine: FakeEngine, **said: object) -> Backend:
    return connect(BackendSpec(name="gpu-0", kind=kind, url="http://gpu-0:8000/", **said), engine, TIMEOUT_S)


async def test_a_scrape_tells_models_memory_and_load(kind: str, engine: FakeEngine):
    snapshot = await backend(kind, engine).scrape()
    assert snapshot.models == (ModelCard("tiny", 2048),)
    assert (snapshot.kv_capacity_tokens, snapshot.kv_used_tokens) == (8192, 0)
    assert (snapshot.running, snapshot.waiting) == (0, 0)


async def test_every_answer_is_closed(kind: str, engine: FakeEngine):
    await backend(kind, engine).scrape()
    assert len(engine.bodies) == 2
    assert all(body.closed for body in engine.bodies)


async def test_pages_are_asked_for_below_the_url_with_a_limit_on_time(
    kind: str, recording: Recording, engine: FakeEngine
):
    await backend(kind, engine).scrape()
    urls = {str(request.url) for request in engine.requests}
    assert urls == {f"http://gpu-0:8000{recording.models_path}", "http://gpu-0:8000/metrics"}
    assert all(request.extensions["timeout"]["read"] == TIMEOUT_S for request in engine.requests)


@pytest.mark.parametrize(("api_key", "header"), [("sesame", "Bearer sesame"), (None, None)])
async def test_the_key_goes_out_with_every_request(
    kind: str, engine: FakeEngine, api_key: str | None, header: str | None
):
    await backend(kind, engine, api_key=api_key).scrape()
    assert {request.headers.get("authorization") for request in engine.requests} == {header}


async def test_the_operators_capacity_wins(kind: str, engine: FakeEngine):
    assert (await backend(kind, engine, kv_tokens=5000).scrape()).kv_capacity_tokens == 5000


async def test_the_operators_models_win_with_the_length_that_the_engine_told(kind: str, engine: FakeEngine):
    assert (await backend(kind, engine, models=("tiny",)).scrape()).models == (ModelCard("tiny", 2048),)


@pytest.mark.parametrize("metrics", [404, 500, None, b"", b"<html>\x00\xff{", b"{}", httpx2.ReadError("lost")])
async def test_an_engine_without_metrics_is_healthy_and_its_numbers_unknown(
    kind: str, engine: FakeEngine, metrics: bytes | int | Exception | None
):
    engine.pages["/metrics"] = metrics
    assert await backend(kind, engine).scrape() == Snapshot(models=(ModelCard("tiny", 2048),))


@pytest.mark.parametrize(
    "models",
    [401, 404, 307, 500, None, b"", b"<html>", b"{}", b'{"data":[{}]}', b"\xff", b"[" * 99999, httpx2.ConnectError("")],
)
async def test_an_engine_that_does_not_tell_its_models_is_unreachable(
    kind: str, recording: Recording, engine: FakeEngine, models: bytes | int | Exception | None
):
    engine.pages[recording.models_path] = models
    with pytest.raises(BackendUnreachableError, match=f"'gpu-0': GET {recording.models_path}: .") as failure:
        await backend(kind, engine, api_key="sesame").scrape()
    assert "sesame" not in str(failure.value)


async def test_pages_are_asked_for_side_by_side(kind: str, recording: Recording):
    everyone_is_here = asyncio.Barrier(2)

    class Meeting(FakeEngine):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await everyone_is_here.wait()
            return await super().handle_async_request(request)

    engine = Meeting({recording.models_path: recording.models, "/metrics": recording.metrics})
    assert (await backend(kind, engine).scrape()).running == 0


def test_a_wrong_request_is_told_in_openais_fields(kind: str, recording: Recording, engine: FakeEngine):
    error = backend(kind, engine).read_error(recording.error_status, recording.error)
    assert (error.message, error.type) == ("too long", "invalid_request_error")
    assert not backend(kind, engine).is_queue_full(recording.error_status, error)


@pytest.mark.parametrize("status", [400, 401, 404, 422, 424, 429, 500, 502, 503])
def test_only_some_statuses_say_that_the_queue_is_full(
    kind: str, recording: Recording, engine: FakeEngine, status: int
):
    full = backend(kind, engine).is_queue_full(status, EngineError("busy", "overloaded"))
    assert full == (status in recording.full_statuses)


@pytest.mark.parametrize("kind", sorted(KINDS))
@given(status=st.integers(400, 599), body=st.binary())
def test_any_error_body_can_be_read(kind: str, status: int, body: bytes):
    error = backend(kind, FakeEngine({})).read_error(status, body)
    assert error.message
    assert error.type


def test_a_body_in_no_known_shape_is_quoted_in_part(kind: str, engine: FakeEngine):
    assert backend(kind, engine).read_error(502, b"x" * 501).message == "x" * 500
