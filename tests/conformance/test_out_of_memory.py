"""Every adapter tells out-of-memory errors from all other failures, in its engine's own error bodies."""

from dataclasses import dataclass

import httpx2
import pytest

from backends.base import Backend, BackendSpec
from backends.registry import KINDS, connect

TIMEOUT_S = 0.05
TORCH = (
    b"CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 23.57 GiB of which 154 MiB is free."
)

Refusal = tuple[int, bytes]
"""A status and a body."""


@dataclass(frozen=True)
class Failures:
    """Answers of an engine that is out of memory, that fails for another reason, and whose queue is full."""

    kind: str
    out_of_memory: tuple[Refusal, ...]
    other: tuple[Refusal, ...]
    full: tuple[Refusal, ...]


def vllm(message: bytes, code: int = 500, kind: bytes = b"InternalServerError") -> Refusal:
    return code, b'{"error":{"message":"%b","type":"%b","param":null,"code":%d}}' % (message, kind, code)


def flat(message: bytes, code: int = 500, kind: bytes = b"InternalServerError") -> Refusal:
    """Return an error as vLLM before 0.10 and SGLang send it."""
    return code, b'{"object":"error","message":"%b","type":"%b","param":null,"code":%d}' % (message, kind, code)


def tgi(message: bytes, kind: bytes = b"generation", status: int = 424) -> Refusal:
    return status, b'{"error":"%b","error_type":"%b"}' % (message, kind)


def llama_cpp(message: bytes, kind: bytes = b"server_error", code: int = 500) -> Refusal:
    return code, b'{"error":{"code":%d,"message":"%b","type":"%b"}}' % (code, message, kind)


DEAD = b"EngineCore encountered an issue. See stack trace (above) for the root cause."
BUSY = (
    b"The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
RETRACTED = b"Out of memory even after retracting all other requests in the decode batch. Aborting the last request."
ABOUT_MEMORY = b"The prompt asks why a GPU is out of memory."

FAILURES = {
    "vllm-0.9": Failures(
        "vllm",
        out_of_memory=(flat(TORCH),),
        other=(flat(b"Internal server error"), flat(ABOUT_MEMORY, 400, b"BadRequestError"), (500, b"")),
        full=(flat(BUSY, 503, b"Service Unavailable"),),
    ),
    "vllm-0.32": Failures(
        "vllm",
        out_of_memory=(vllm(TORCH), vllm(b"HIP out of memory. Tried to allocate 2.50 GiB.")),
        other=(vllm(DEAD), vllm(ABOUT_MEMORY, 400, b"BadRequestError"), (500, b"Internal Server Error")),
        full=(vllm(BUSY, 503, b"Service Unavailable"),),
    ),
    "tgi": Failures(
        "tgi",
        out_of_memory=(tgi(b"Request failed during generation: Server error: " + TORCH),),
        other=(
            tgi(b"Request failed during generation: Server error: transport error"),
            tgi(b"Incomplete generation", b"incomplete_generation", 500),
            tgi(b"Input validation error: " + ABOUT_MEMORY, b"validation", 422),
            tgi(b"unhealthy", b"healthcheck", 503),
        ),
        full=(tgi(b"Model is overloaded", b"overloaded", 429),),
    ),
    "sglang": Failures(
        "openai",
        out_of_memory=(flat(RETRACTED),),
        other=(flat(b"Internal server error: tokenizer"), flat(ABOUT_MEMORY, 400, b"BadRequest"), (500, b"")),
        full=(flat(b"The request queue is full.", 503, b"ServiceUnavailable"),),
    ),
    "llama.cpp": Failures(  # it crashes when out of memory, without an answer
        "openai",
        out_of_memory=(),
        other=(llama_cpp(b"Compute error."), llama_cpp(b"Context size has been exceeded.")),
        full=(llama_cpp(b"Loading model", b"unavailable_error", 503),),
    ),
    "static": Failures(
        "static",
        out_of_memory=(vllm(TORCH), (500, b'{"detail":"%b"}' % TORCH), (500, b"torch.OutOfMemoryError: " + TORCH)),
        other=(vllm(b"Internal server error"), (500, b'{"detail":"device-side assert triggered"}'), (502, b"<html>")),
        full=(vllm(BUSY, 503, b"Service Unavailable"),),
    ),
}


@pytest.fixture(params=FAILURES)
def failures(request: pytest.FixtureRequest) -> Failures:
    return FAILURES[request.param]


@pytest.fixture
def adapter(failures: Failures) -> Backend:
    spec = BackendSpec(name="gpu-0", kind=failures.kind, url="http://gpu-0:8000")
    return connect(spec, httpx2.AsyncBaseTransport(), TIMEOUT_S)


def lacks_memory(adapter: Backend, refusal: Refusal) -> bool:
    status, body = refusal
    return adapter.is_out_of_memory(status, adapter.read_error(status, body))


def is_full(adapter: Backend, refusal: Refusal) -> bool:
    status, body = refusal
    return adapter.is_queue_full(status, adapter.read_error(status, body))


def test_every_kind_of_engine_has_its_failures():
    assert {failures.kind for failures in FAILURES.values()} == set(KINDS)


def test_every_kind_of_engine_can_run_out_of_memory():
    assert {failures.kind for failures in FAILURES.values() if failures.out_of_memory} == set(KINDS)


def test_out_of_memory_error_is_detected(failures: Failures, adapter: Backend):
    assert [refusal for refusal in failures.out_of_memory if not lacks_memory(adapter, refusal)] == []


def test_other_failure_is_no_out_of_memory_error(failures: Failures, adapter: Backend):
    assert [refusal for refusal in failures.other if lacks_memory(adapter, refusal)] == []


def test_full_queue_is_no_out_of_memory_error(failures: Failures, adapter: Backend):
    assert [refusal for refusal in failures.full if lacks_memory(adapter, refusal)] == []
    assert all(is_full(adapter, refusal) for refusal in failures.full)


def test_out_of_memory_error_is_a_failure_of_the_engine_and_no_full_queue(failures: Failures, adapter: Backend):
    for status, body in failures.out_of_memory:
        assert adapter.has_failed(status, adapter.read_error(status, body))
        assert not is_full(adapter, (status, body))
