import json

import pytest

from gateway.errors import BackendUnavailable, InvalidRequest
from gateway.protocol.answers import Usage
from gateway.protocol.error_bodies import response_error_event
from gateway.protocol.responses import read_response, read_response_request, response_scanner

USAGE = {"input_tokens": 7, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}}


def request(**fields):
    return read_response_request(json.dumps({"model": "llama", "input": "hi", **fields}).encode())


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({**fields, 'type': kind})}\n\n".encode()


CREATED = event("response.created", response={"status": "in_progress", "usage": None, "error": None})
TEXT = event("response.output_text.delta", delta="a", logprobs=[])
DONE = event("response.output_text.done", text="aa")
COMPLETED = event("response.completed", response={"status": "completed", "usage": USAGE, "error": None})
STREAM = CREATED + TEXT + TEXT + DONE + COMPLETED


def scanned(stream, size=10_000):
    scanner = response_scanner(hide_usage=True)
    forwarded = b"".join(scanner.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    return scanner, forwarded + scanner.close()


def test_a_text_is_one_message_of_the_user():
    asked = request(instructions="Be brief.", max_output_tokens=5, user="ann", reasoning={"effort": "low"})
    assert (asked.model, asked.user, asked.max_tokens, asked.stream) == ("llama", "ann", 5, False)
    assert (asked.system, asked.last_user, asked.message_count) == ("Be brief.", "hi", 1)
    assert (asked.text_bytes, asked.reasoning_effort) == (len("Be brief.hi"), "low")


def test_items_are_messages_calls_and_results():
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "x"}]},
        {"type": "function_call", "name": "f", "arguments": '{"a":1}'},
        {"type": "function_call_output", "call_id": "c", "output": "four"},
    ]
    asked = request(input=items, tools=[{"type": "function"}], text={"format": {"type": "json_schema"}})
    assert (asked.system, asked.last_user, asked.message_count) == ("Be brief.", "hi", 4)
    assert asked.text_bytes == len('Be brief.hi{"a":1}four') + asked.tools_bytes
    assert asked.tools_bytes == len('[{"type": "function"}]')
    assert asked.schema_bytes > 0


def test_an_answer_that_the_gateway_would_have_to_keep_is_rejected():
    with pytest.raises(InvalidRequest) as refusal:
        request(background=True)
    assert refusal.value.param == "background"


@pytest.mark.parametrize(
    "fields",
    [
        {"input": 3},
        {"input": ["a", 7]},
        {"input": [{"role": 7, "content": 8}]},
        {"input": None},
        {"model": None},
        {"max_output_tokens": -1},
        {"user": 7, "safety_identifier": []},
        {"instructions": 7, "reasoning": 7, "text": "x", "stream": "true", "background": "no"},
    ],
)
def test_fields_of_an_unexpected_shape_are_the_engine_s_to_judge(fields):
    asked = request(**fields)
    assert (asked.user, asked.max_tokens) == (None, None)


@pytest.mark.parametrize(
    ("body", "finish_reason", "failure"),
    [
        ({"status": "completed", "usage": USAGE}, "stop", None),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length", None),
        ({"status": "failed", "error": {"code": "server_error", "message": "boom"}}, "stop", "boom"),
        ({"status": "failed"}, "stop", "no reason given"),
        ({"error": {"message": "boom"}}, "stop", "boom"),
    ],
)
def test_a_whole_answer_tells_how_it_ended(body, finish_reason, failure):
    answer = read_response(json.dumps(body).encode())
    assert (answer.finish_reason, answer.failure) == (finish_reason, failure)


@pytest.mark.parametrize("body", [b"text", b'{"usage": "7", "error": ""}', b'{"usage": {"input_tokens": -1}}'])
def test_an_answer_that_is_not_understood_has_unknown_counts(body):
    answer = read_response(body)
    assert (answer.failure, (answer.usage or Usage()).prompt_tokens) == (None, None)


@pytest.mark.parametrize("size", [1, 3, 64, 10_000])
def test_a_stream_is_forwarded_and_read_for_any_chunk_borders(size):
    scanner, forwarded = scanned(STREAM, size)
    assert forwarded == STREAM
    assert (scanner.events, scanner.finish_reason, scanner.succeeded) == (2, "stop", True)
    usage = scanner.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens) == (7, 3, 4)


@pytest.mark.parametrize("stream", [CREATED + TEXT, TEXT + DONE, b""])
def test_a_stream_that_stops_before_its_end_has_failed(stream):
    assert not scanned(stream)[0].succeeded


@pytest.mark.parametrize(
    "error",
    [
        event("error", message="boom", code="server_error"),
        event("response.failed", response={"status": "failed", "error": {"message": "boom"}}),
        b'data: {"error":{"message":"boom","code":500}}\n\n',
    ],
)
def test_an_error_is_not_forwarded(error):
    scanner, forwarded = scanned(CREATED + TEXT + error)
    assert forwarded == CREATED + TEXT
    assert (scanner.error, scanner.succeeded) == ("boom", False)


@pytest.mark.parametrize("kind", ["output_text", "reasoning_text", "function_call_arguments"])
def test_every_kind_of_piece_counts(kind):
    assert scanned(event(f"response.{kind}.delta", delta="a"))[0].events == 1


def test_our_own_error_event_is_what_openai_s_client_raises_by():
    name, data, *_ = response_error_event(BackendUnavailable("boom")).decode().split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (told["type"], told["message"], told["error"]["code"]) == ("error", "boom", "backend_unavailable")
