import pytest

from backends.base import BackendSpec, EngineError, ModelCard
from backends.openai_api import is_out_of_memory, model_cards, read_error


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"error":{"message":"too long","type":"BadRequestError","param":"prompt","code":400}}',
            EngineError("too long", "BadRequestError", "prompt", 400),
        ),
        (
            b'{"object":"error","message":"too long","type":"BadRequestError","param":null,"code":400}',
            EngineError("too long", "BadRequestError", None, 400),
        ),
        (
            b'{"error":{"message":"no credit","type":"insufficient_quota","code":"insufficient_quota"}}',
            EngineError("no credit", "insufficient_quota", None, "insufficient_quota"),
        ),
        (
            b'{"type":"error","error":{"type":"overloaded_error","message":"busy"}}',
            EngineError("busy", "overloaded_error"),
        ),
        (
            b'{"error":{"message":"odd","type":1,"param":["a"],"code":null}}',
            EngineError("odd", "invalid_request_error"),
        ),
        (b'{"error":"Unauthorized"}', EngineError("Unauthorized", "invalid_request_error")),
        (b'{"detail":"Not Found"}', EngineError("Not Found", "invalid_request_error")),
        (
            b'{"detail":[{"loc":["body","n"],"msg":"not an integer","type":"int_type"}]}',
            EngineError("not an integer", "invalid_request_error"),
        ),
    ],
)
def test_reads_error_bodies_in_openais_and_similar_formats(body: bytes, error: EngineError):
    assert read_error(400, body) == error


@pytest.mark.parametrize(
    "body", [b"<html>Bad Gateway</html>", b'{"error":{"text":"x"}}', b"[1]", b'{"message":', b"[" * 9999]
)
def test_an_unknown_format_is_quoted(body: bytes):
    assert read_error(502, body) == EngineError(body.decode()[:500], "server_error")


def test_an_empty_body_still_has_a_message():
    assert read_error(502, b" ").message == "the engine answered 502 without an error message"


def test_models_of_the_operator_have_the_engines_lengths():
    spec = BackendSpec(name="gpu-0", kind="vllm", url="http://gpu-0:8000", models=("a", "b"))
    assert model_cards(spec, {"a": 4096, "c": 8192}) == (ModelCard("a", 4096), ModelCard("b"))


@pytest.mark.parametrize("length", [None, "4096", 0, -1, True, 4096.0])
def test_an_invalid_length_is_unknown(length: object):
    spec = BackendSpec(name="gpu-0", kind="vllm", url="http://gpu-0:8000")
    assert model_cards(spec, {"a": length}) == (ModelCard("a"),)


@pytest.mark.parametrize(
    ("status", "message", "out_of_memory"),
    [
        (500, "CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        (503, "HIP Out Of Memory", True),
        (500, "Internal server error", False),
        (400, "a prompt about running out of memory", False),
    ],
)
def test_out_of_memory_is_recognised_by_its_message(status, message, out_of_memory):
    assert is_out_of_memory(status, EngineError(message, "x")) is out_of_memory
