import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import UntranslatableError
from backends.tgi_native import CHAT_PATH, COMPLETION_PATH, translate

CHAT = {"model": "tgi", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
COMPLETION = {"model": "tgi", "prompt": "Once"}


def translated(path, request, **told):
    return translate(path, json.dumps(request).encode(), created=7, **told)


def sent(path, request, **told):
    return json.loads(translated(path, request, **told).body)


def event(text, *, special=False, **ending):
    fields = {"index": 1, "token": {"id": 1, "text": text, "logprob": -1.0, "special": special}, "top_tokens": []}
    return b"data:" + json.dumps({**fields, "generated_text": None, "details": None, **ending}).encode() + b"\n\n"


def last_event(text, reason="eos_token", *, special=False, **counts):
    details = {"finish_reason": reason, "generated_tokens": 3, "seed": None, **counts}
    return event(text, special=special, generated_text="whatever", details=details)


def events(stream):
    lines = [line.removeprefix("data: ") for line in stream.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def text_of(stream, key="text"):
    choices = [choice for event in events(stream)[:-1] for choice in event["choices"]]
    return "".join(choice["delta"]["content"] if key == "content" else choice["text"] for choice in choices)


def test_a_text_completion_is_sent_with_its_prompt_and_default_length():
    translation = translated(COMPLETION_PATH, COMPLETION)
    assert translation.path == "/generate"
    assert json.loads(translation.body) == {
        "inputs": "Once",
        "parameters": {"max_new_tokens": 16, "details": True, "return_full_text": False, "do_sample": True},
    }


def test_sampling_parameters_get_tgis_names():
    request = {**COMPLETION, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": "\n"}
    assert sent(COMPLETION_PATH, request)["parameters"] == {
        "max_new_tokens": 5,
        "details": True,
        "return_full_text": False,
        "do_sample": True,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["\n"],
    }


def test_values_that_tgi_rejects_are_replaced():
    parameters = sent(COMPLETION_PATH, {**COMPLETION, "temperature": 0, "top_p": 1})["parameters"]
    assert parameters["do_sample"] is False
    assert not {"temperature", "top_p"} & parameters.keys()


def test_a_chat_is_a_dialogue_that_stops_before_the_users_next_turn():
    native = sent(CHAT_PATH, {**CHAT, "max_completion_tokens": 9, "max_tokens": 4})
    assert native["inputs"] == "Be brief.\nUser: Hi\nAssistant:"
    assert native["parameters"]["stop"] == ["\nUser:"]
    assert native["parameters"]["max_new_tokens"] == 9


def test_text_parts_of_a_message_are_joined():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert sent(CHAT_PATH, {**CHAT, "messages": messages})["inputs"] == "User: a\nb\nAssistant:"


@pytest.mark.parametrize(("max_total_tokens", "limit"), [(None, 1024), (512, 256), (100_000, 1024)])
def test_a_chat_without_a_limit_leaves_room_for_its_prompt(max_total_tokens, limit):
    native = sent(CHAT_PATH, CHAT, max_total_tokens=max_total_tokens)
    assert native["parameters"]["max_new_tokens"] == limit


def test_at_most_four_stop_sequences_are_sent():
    assert sent(CHAT_PATH, {**CHAT, "stop": ["a", "b", "c", "d"]})["parameters"]["stop"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT_PATH, {"tools": [{"type": "function"}]}, "tools"),
        (CHAT_PATH, {"n": 2}, "n"),
        (CHAT_PATH, {"logprobs": True}, "logprobs"),
        (CHAT_PATH, {"response_format": {"type": "json_object"}}, "response_format"),
        (CHAT_PATH, {"presence_penalty": 0.5}, "presence_penalty"),
        (CHAT_PATH, {"messages": []}, "messages"),
        (CHAT_PATH, {"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (CHAT_PATH, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        (COMPLETION_PATH, {"prompt": ["a", "b"]}, "prompt"),
        (COMPLETION_PATH, {"prompt": [1, 2]}, "prompt"),
        (COMPLETION_PATH, {"echo": True}, "echo"),
        (COMPLETION_PATH, {"max_tokens": "5"}, None),
    ],
)
def test_unsupported_field_is_rejected_by_name(path, fields, param):
    request = {**(CHAT if path == CHAT_PATH else COMPLETION), **fields}
    with pytest.raises(UntranslatableError) as refusal:
        translated(path, request)
    assert refusal.value.param == param


def test_unsupported_fields_with_default_values_are_accepted():
    request = {**CHAT, "n": 1, "tools": [], "presence_penalty": 0, "response_format": {"type": "text"}, "user": "u"}
    assert sent(CHAT_PATH, request)["inputs"].endswith("Assistant:")


def test_a_whole_answer_is_converted_to_openais_format():
    answer = {"generated_text": " hello", "details": {"finish_reason": "length", "generated_tokens": 3, "tokens": []}}
    body = json.loads(translated(CHAT_PATH, CHAT).whole(json.dumps(answer).encode()))
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert (choice["message"]["content"], choice["finish_reason"]) == (" hello", "length")
    assert body["usage"] == {"prompt_tokens": None, "completion_tokens": 3, "total_tokens": None}


def test_the_stop_sequence_at_the_end_is_removed():
    details = {"finish_reason": "stop_sequence", "generated_tokens": 3}
    answer = json.dumps({"generated_text": "one.\nUser:", "details": details}).encode()
    body = json.loads(translated(CHAT_PATH, CHAT).whole(answer))
    assert body["choices"][0]["message"]["content"] == "one."
    assert body["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"generated_text": "x", "details": null}', b"\xff"])
def test_invalid_answer_becomes_empty(body):
    assert translated(COMPLETION_PATH, COMPLETION).whole(body) == b""


def test_a_stream_is_converted_and_has_usage_if_requested():
    request = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    translation = translated(CHAT_PATH, request)
    *chunks, usage, done = events(
        translation.feed(event("one") + event(" two") + last_event("</s>", special=True, input_length=5))
    )
    assert translation.path == "/generate_stream"
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"content": "one", "role": "assistant"},
        {"content": " two"},
        {"content": ""},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert usage["usage"] == {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert done == "[DONE]"


def test_a_text_stream_without_usage_has_none():
    stream = translated(COMPLETION_PATH, {**COMPLETION, "stream": True}).feed(event("a") + last_event("b", "length"))
    assert text_of(stream) == "ab"
    assert [e["choices"][0]["finish_reason"] for e in events(stream)[:-1]] == [None, "length"]


@pytest.mark.parametrize(
    ("tokens", "reason", "shown"),
    [
        (["one", "\n", "User", ":"], "stop_sequence", "one"),
        (["one", "\n", "User", "s"], "eos_token", "one\nUsers"),
        (["one", "\n"], "length", "one\n"),
        (["one\nUser:"], "stop_sequence", "one"),
        (["a", "\nUs", "\nUser:"], "stop_sequence", "a\nUs"),
    ],
)
def test_a_stream_delays_text_that_may_be_a_stop_sequence(tokens, reason, shown):
    translation = translated(CHAT_PATH, {**CHAT, "stream": True})
    *first, last = tokens
    stream = b"".join(translation.feed(event(text)) for text in first) + translation.feed(last_event(last, reason))
    assert text_of(stream, "content") == shown


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'data:{"error":"Request failed","error_type":"generation"}\n\n', "Request failed"),
        (b"data:<html>\n\n", "not in TGI's format"),
    ],
)
def test_an_error_event_stays_an_error_and_does_not_end_the_stream(data, words):
    (error,) = events(translated(CHAT_PATH, {**CHAT, "stream": True}).feed(data))
    assert words in error["error"]["message"]


@given(st.lists(st.text(max_size=6), max_size=8), st.data())
def test_chunk_borders_do_not_matter(tokens, data):
    stream = b"".join(event(text) for text in tokens) + last_event("end", "length", input_length=1)
    request = {**CHAT, "stream": True, "stop": ["ab", "\u00e9\n"]}
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    at_once = translated(CHAT_PATH, request).feed(stream)
    cut_up = translated(CHAT_PATH, request)

    assert b"".join(cut_up.feed(piece) for piece in pieces) == at_once
    assert text_of(at_once, "content") == "".join(tokens) + "end"
