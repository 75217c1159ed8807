"""The behaviour of a real vLLM that the gateway relies on. If a new version changes it, these tests fail first."""

import json
import re
import time
from collections.abc import Iterator

import httpx2
import pytest

from bench.vllm_environment.engine import MAX_MODEL_TOKENS, Engine

# The first test waits for vLLM's start.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

GREETING = [{"role": "user", "content": "hello"}]
GENERATED = re.compile(r"^vllm:generation_tokens_total\{[^}]*\} (\S+)$", re.MULTILINE)
USAGE = re.compile(r"^vllm:kv_cache_usage_perc\{[^}]*\} (\S+)$", re.MULTILINE)


@pytest.fixture
def client(vllm: Engine) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=vllm.url, timeout=30, trust_env=False) as client:
        yield client


def chat(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": GREETING, "ignore_eos": True, **fields}


def data_of(stream: str) -> list[str]:
    return [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]


def kv_usage(client: httpx2.Client) -> float:
    found = USAGE.search(client.get("/metrics").text)
    assert found is not None
    return float(found.group(1))


def generated_tokens(client: httpx2.Client) -> float:
    found = GENERATED.search(client.get("/metrics").text)
    assert found is not None
    return float(found.group(1))


def wait_for_usage(client: httpx2.Client, *, above_zero: bool) -> None:
    deadline = time.monotonic() + 10
    while (kv_usage(client) > 0) is not above_zero:
        assert time.monotonic() < deadline, f"kv usage is not {'above' if above_zero else 'back at'} zero"
        time.sleep(0.05)


def test_chat_has_the_requested_length(client: httpx2.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat(max_tokens=7)).json()
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"


def test_completions_number_the_choices_of_a_prompt_list(client: httpx2.Client) -> None:
    body = {"model": "tiny", "prompt": ["one", "two"], "max_tokens": 3, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 6


def test_stream_ends_in_usage_and_done(client: httpx2.Client) -> None:
    body = chat(max_tokens=5, stream=True, stream_options={"include_usage": True})
    *_, usage, done = data_of(client.post("/v1/chat/completions", json=body).text)
    assert done == "[DONE]"
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] == 5


def test_request_id_becomes_part_of_the_response_id(client: httpx2.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat(max_tokens=1), headers={"X-Request-Id": "abc"})
    assert answer.json()["id"] == "chatcmpl-abc"


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_frees_its_memory(vllm: Engine, client: httpx2.Client, stream: bool) -> None:
    body = chat(max_tokens=2000, stream=stream)
    before = generated_tokens(client)
    timeout = httpx2.Timeout(10, read=0.5)
    with httpx2.Client(base_url=vllm.url, timeout=timeout, trust_env=False) as leaver, pytest.raises(LeavingError):
        leave_while_generating(leaver, client, body)
    wait_for_usage(client, above_zero=False)
    assert generated_tokens(client) < before + 2000


class LeavingError(Exception):
    """Disconnects in the middle of an answer."""


def leave_while_generating(leaver: httpx2.Client, observer: httpx2.Client, body: dict[str, object]) -> None:
    try:
        with leaver.stream("POST", "/v1/chat/completions", json=body):
            wait_for_usage(observer, above_zero=True)
            raise LeavingError
    except httpx2.ReadTimeout as silent:
        # An answer in one piece shows no progress until its end.
        raise LeavingError from silent


@pytest.mark.parametrize("stream", [True, False])
def test_context_too_long_is_plain_json(client: httpx2.Client, stream: bool) -> None:
    messages = [{"role": "user", "content": "word and " * MAX_MODEL_TOKENS}]
    answer = client.post("/v1/chat/completions", json=chat(messages=messages, stream=stream))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("BadRequestError", "input_tokens", 400)


def test_unknown_model_is_not_found(client: httpx2.Client) -> None:
    answer = client.post("/v1/chat/completions", json=chat(model="other"))
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


def test_capacity_is_on_the_metrics_page(client: httpx2.Client) -> None:
    labels = re.search(r"^vllm:cache_config_info\{([^}]*)\}", client.get("/metrics").text, re.MULTILINE)
    assert labels is not None
    assert 'block_size="32"' in labels.group(1)
    assert 'num_gpu_blocks="128"' in labels.group(1)
