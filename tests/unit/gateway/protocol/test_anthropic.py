import json

import pytest

from gateway.errors import BackendUnavailable, InvalidRequest, ModelNotFound, QueueFull
from gateway.protocol.answers import Usage
from gateway.protocol.anthropic import message_scanner, read_message, read_messages
from gateway.protocol.error_bodies import anthropic_error, anthropic_error_event


def messages(*turns, **fields):
    turns = turns or ({"role": "user", "content": "hi"},)
    return json.dumps({"model": "llama", "max_tokens": 9, "messages": list(turns), **fields}).encode()


def event(kind, **fields):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


START = event("message_start", message={"id": "m", "usage": {"input_tokens": 7, "output_tokens": 1}})
TEXT = event("content_block_delta", index=0, delta={"type": "text_delta", "text": "a"})
DELTA = event("message_delta", delta={"stop_reason": "max_tokens"}, usage={"output_tokens": 3})
STOP = event("message_stop")
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
STREAM = START + event("content_block_start", index=0) + event("ping") + TEXT + TEXT + DELTA + STOP


def scanned(stream, size=10_000):
    scanner = message_scanner(hide_usage=True)
    forwarded = b"".join(scanner.feed(stream[at : at + size]) for at in range(0, len(stream), size))
    return scanner, forwarded + scanner.close()


def test_the_fields_of_a_request_are_read():
    body = messages(
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": [{"type": "text", "text": "so"}]},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "you"}]},
        system=[{"type": "text", "text": "Be brief."}],
        metadata={"user_id": "ann"},
        stream=True,
        temperature=0.5,
        stop_sequences=["a", "b"],
        output_config={"effort": "low", "format": {"type": "json_schema"}},
    )
    asked = read_messages(body)
    assert (asked.model, asked.user, asked.max_tokens, asked.sequences, asked.stream) == ("llama", "ann", 9, 1, True)
    assert (asked.system, asked.last_user, asked.message_count) == ("Be brief.", "Hi\nyou", 3)
    assert (asked.temperature, asked.stop_count, asked.reasoning_effort) == (0.5, 2, "low")
    assert asked.schema_bytes > 0
    assert asked.text_bytes == len("firstsoHi\nyouBe brief.")
    assert asked.includes_usage  # a stream of this API always has it: nothing is asked for, and nothing hidden


def test_thoughts_calls_and_results_are_text_that_the_engine_reads_and_images_are_not():
    plain = read_messages(messages({"role": "user", "content": "hi"})).text_bytes
    image = {"type": "image", "source": {"type": "base64", "data": "x" * 1000}}
    asked = read_messages(
        messages(
            {"role": "user", "content": [{"type": "text", "text": "hi"}, image]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "four"}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "fi"}, image]}]},
        )
    )
    assert asked.text_bytes - plain == len("hm") + len('{"a": 1}') + len("four") + len("fi")
    assert asked.last_user == "hi"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": []}',
        b'{"model": "m"}',
        messages({"role": "user"}),
        messages({"role": "user", "content": None}),
        messages({"role": "user", "content": 7}, 8),
        messages(max_tokens=0),
        messages(max_tokens="9"),
        messages(metadata=[]),
        messages(metadata={"user_id": 7}),
        messages(system=7),
        messages(system={"text": "x"}),
        messages(stream="true", tools=7, output_config=3, stop_sequences=1),
        b'{"model": "m", "messages": {"role": "user"}}',
    ],
)
def test_fields_of_an_unexpected_shape_are_the_engine_s_to_judge(body):
    asked = read_messages(body)
    assert (asked.user, asked.body) == (None, body)
    assert asked.max_tokens in (9, None)


def test_the_prompt_tokens_of_an_answer_include_the_cached_ones():
    answer = read_message(
        b'{"type":"message","stop_reason":"end_turn","usage":{"input_tokens":7,"output_tokens":3,'
        b'"cache_read_input_tokens":90,"cache_creation_input_tokens":3}}'
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (100, 3)
    assert answer.usage.prompt_tokens_details.cached_tokens == 90
    assert (answer.finish_reason, answer.failure) == ("stop", None)


@pytest.mark.parametrize(
    "body", [b"text", b"[]", b"\xff", b'{"usage": []}', b'{"usage": {"input_tokens": 1.5}, "error": {}}']
)
def test_an_answer_that_is_not_understood_has_unknown_counts(body):
    answer = read_message(body)
    assert (answer.failure, (answer.usage or Usage()).prompt_tokens) == (None, None)


@pytest.mark.parametrize("body", [b'{"type":"error","error":{"message":"no"}}', b'{"error":"no"}'])
def test_an_error_instead_of_an_answer_is_a_failure(body):
    assert read_message(body).failure == "no"


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
def test_a_stream_is_forwarded_and_read_for_any_chunk_borders(size):
    scanner, forwarded = scanned(STREAM, size)
    assert forwarded == STREAM
    assert (scanner.events, scanner.finish_reason, scanner.done, scanner.succeeded) == (2, "length", True, True)
    assert (scanner.usage.prompt_tokens, scanner.usage.completion_tokens) == (7, 3)


def test_a_stream_that_breaks_is_counted_by_its_events():
    scanner, _ = scanned(START + TEXT + TEXT)
    assert not scanner.succeeded
    assert (scanner.usage.prompt_tokens, scanner.usage.completion_tokens, scanner.events) == (7, None, 2)


def test_a_stop_reason_alone_does_not_end_a_stream():
    assert not scanned(START + TEXT + DELTA)[0].succeeded


@pytest.mark.parametrize("error", [ERROR, b'data: {"error":{"message":"Overloaded","code":500}}\n\n'])
def test_an_error_and_what_follows_it_are_not_forwarded(error):
    scanner, forwarded = scanned(START + TEXT + error + STOP)
    assert forwarded == START + TEXT
    assert (scanner.error, scanner.succeeded) == ("Overloaded", False)


@pytest.mark.parametrize("text", ['"content_block_delta"', '"usage"', '"message_stop"', "event: error\n\n", "ärger 🦙"])
def test_quoted_json_in_a_text_is_not_read_as_an_event(text):
    quoted = event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})
    scanner, forwarded = scanned(quoted)
    assert forwarded == quoted
    assert (scanner.events, scanner.done, scanner.error, scanner.usage) == (1, False, None, None)


@pytest.mark.parametrize("kind", ["thinking_delta", "input_json_delta", "signature_delta"])
def test_every_kind_of_piece_counts(kind):
    scanner, _ = scanned(event("content_block_delta", index=0, delta={"type": kind}))
    assert scanner.events == 1


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InvalidRequest("no"), "invalid_request_error"),
        (ModelNotFound("no"), "not_found_error"),
        (QueueFull("no", retry_after_s=1), "rate_limit_error"),
        (BackendUnavailable("no"), "api_error"),
    ],
)
def test_an_error_has_anthropic_s_format(error, kind):
    assert json.loads(anthropic_error(error)) == {"type": "error", "error": {"type": kind, "message": "no"}}
    name, data, *rest = anthropic_error_event(error).decode().split("\n")
    assert (name, json.loads(data.removeprefix("data: ")), rest) == (
        "event: error",
        json.loads(anthropic_error(error)),
        ["", ""],
    )
