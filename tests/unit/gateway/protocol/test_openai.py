import json

import pytest

from gateway.errors import InvalidRequest
from gateway.protocol.openai import MAX_SEQUENCES, read_chat, read_completion


def chat(*messages, **fields):
    return json.dumps({"model": "llama", "messages": list(messages), **fields}).encode()


def completion(prompt, **fields):
    return json.dumps({"model": "llama", "prompt": prompt, **fields}).encode()


def message(role, content, **fields):
    return {"role": role, "content": content, **fields}


def test_the_fields_of_a_chat_are_read():
    body = chat(message("system", "Be brief."), message("user", "Hi"), user="u1", max_tokens=9, n=2, stream=True)
    asked = read_chat(body)
    assert (asked.model, asked.user, asked.max_tokens, asked.sequences, asked.stream) == ("llama", "u1", 9, 2, True)
    assert (asked.system, asked.last_user, asked.prompt_tokens) == ("Be brief.", "Hi", None)


def test_system_and_developer_messages_are_one_system_prompt():
    asked = read_chat(chat(message("system", "a"), message("user", "b"), message("developer", "c")))
    assert asked.system == "a\nc"


def test_a_chat_without_system_prompt_or_user_has_none():
    asked = read_chat(chat(message("assistant", "a")))
    assert (asked.system, asked.last_user) == (None, None)


def test_only_the_text_of_parts_is_read():
    image = {"type": "image_url", "image_url": {"url": "data:" + "x" * 1000}}
    asked = read_chat(
        chat(message("user", [{"type": "text", "text": "what"}, image, {"type": "text", "text": "is it"}]))
    )
    assert asked.last_user == "what\nis it"
    assert asked.text_bytes == len("what\nis it")


def test_tools_and_tool_calls_are_text_that_the_engine_reads():
    plain = read_chat(chat(message("user", "hi")))
    tools = [{"type": "function", "function": {"name": "look_up"}}]
    armed = read_chat(chat(message("user", "hi"), message("assistant", None, tool_calls=tools), tools=tools))
    assert armed.text_bytes - plain.text_bytes == 2 * len(json.dumps(tools))


def test_max_completion_tokens_wins_over_max_tokens():
    assert read_chat(chat(max_tokens=5, max_completion_tokens=7)).max_tokens == 7


def test_safety_identifier_names_the_user_if_user_is_absent():
    assert read_chat(chat(safety_identifier="s")).user == "s"
    assert read_chat(chat(safety_identifier="s", user="u")).user == "u"
    assert read_chat(chat(user="")).user is None


@pytest.mark.parametrize(("options", "wants"), [(None, False), ({}, False), ({"include_usage": True}, True)])
def test_a_request_for_token_counts_is_read(options, wants):
    assert read_chat(chat(stream=True, stream_options=options)).includes_usage is wants


def test_unknown_fields_are_ignored():
    assert read_chat(chat(message("user", "hi", name=7, x=[]), logit_bias={"50256": -100})).last_user == "hi"


@pytest.mark.parametrize(
    ("prompt", "sequences", "text_bytes", "prompt_tokens"),
    [
        ("héllo", 1, 6, None),
        (["a", "bc"], 2, 3, None),
        ([5, 6, 7], 1, 0, 3),
        ([[5], [6, 7]], 2, 0, 3),
        ("", 1, 0, None),
    ],
)
def test_a_prompt_has_one_of_four_forms(prompt, sequences, text_bytes, prompt_tokens):
    asked = read_completion(completion(prompt))
    assert (asked.sequences, asked.text_bytes, asked.prompt_tokens) == (sequences, text_bytes, prompt_tokens)


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (read_chat, chat(message(7, "hi")), "messages[0].role"),
        (read_chat, chat(message("user", "hi"), {"content": "hi"}), "messages[1].role"),
        (read_chat, chat(message("user", {"text": "hi"})), "messages[0].content"),
        (read_chat, b'{"messages": []}', "model"),
        (read_chat, b'{"model": "m"}', "messages"),
        (read_chat, chat(stream="yes"), "stream"),
        (read_chat, chat(stream_options=[]), "stream_options"),
        (read_chat, chat(max_tokens=0), "max_tokens"),
        (read_chat, chat(max_completion_tokens=-1), "max_completion_tokens"),
        (read_chat, chat(n=0), "n"),
        (read_chat, chat(n=MAX_SEQUENCES + 1), "n"),
        (read_completion, completion(["a"] * 2, n=MAX_SEQUENCES), "n"),
        (read_completion, completion([]), "prompt"),
        (read_completion, completion(["a", 1]), "prompt"),
        (read_completion, completion([1, [2]]), "prompt"),
        (read_completion, completion({}), "prompt"),
        (read_completion, completion([1.5]), "prompt[0]"),
    ],
)
def test_an_error_names_the_field_as_openai_does(read, body, param):
    with pytest.raises(InvalidRequest) as refusal:
        read(body)
    assert refusal.value.param == param
    assert param.partition("[")[0] in refusal.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "Expected `object`"),
        (b'{"model": "m", "messages": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    ],
)
def test_a_body_that_is_not_a_request_is_rejected(body, message):
    with pytest.raises(InvalidRequest, match=message) as refusal:
        read_chat(body)
    assert refusal.value.param is None


@pytest.mark.parametrize("digits", [20, 400, 4300, 5000])
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_number_that_is_too_large_is_rejected_and_not_repeated(digits, field, sign):
    body = f'{{"model": "m", "messages": [], "{field}": {sign}{"9" * digits}}}'
    with pytest.raises(InvalidRequest) as refusal:
        read_chat(body.encode())
    assert refusal.value.param == field
    assert len(refusal.value.message) < 200


def test_an_n_that_is_too_large_is_rejected_for_several_prompts():
    body = f'{{"model": "m", "prompt": ["a", "b"], "n": {"9" * 4300}}}'
    with pytest.raises(InvalidRequest, match="n"):
        read_completion(body.encode())


def test_an_error_does_not_repeat_the_prompt():
    with pytest.raises(InvalidRequest) as refusal:
        read_chat(chat(message("user", "sesame"), {"content": "sesame", "role": ["sesame"]}))
    assert "sesame" not in str(refusal.value)
