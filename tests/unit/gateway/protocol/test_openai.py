import json

import pytest

from gateway.errors import BodyTooLarge, InvalidRequest
from gateway.protocol.generation_request import MAX_MESSAGES, MAX_PARTS
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


ODD_CHATS = [
    chat(message(7, "hi")),
    chat(message("user", "hi"), {"content": "hi"}),
    chat(message("user", {"text": "hi"})),
    chat(message("user", ["a", "b"])),
    chat(message("tool", 42)),
    chat(message("user", [{"text": 42}, {"type": "unknown"}, [7], None])),
    chat(7, None, "hi"),
    b'{"messages": []}',
    b'{"model": "m"}',
    b'{"model": 7, "messages": {}}',
    chat(stream="true"),
    chat(stream_options=[]),
    chat(stream_options=False, stream=True),
    chat(max_tokens=0),
    chat(max_tokens=1.0),
    chat(max_tokens="5"),
    chat(max_completion_tokens=-1),
    chat(n=0),
    chat(n=1.5),
    chat(n="2"),
    chat(n=-(10**30)),
    chat(user=7, safety_identifier={"id": 1}),
    chat(tools="x", stop={"a": 1}, temperature="hot", response_format=7, reasoning_effort=[]),
]


@pytest.mark.parametrize("body", ODD_CHATS)
def test_fields_of_an_unexpected_shape_are_the_engine_s_to_judge(body):
    asked = read_chat(body)
    assert asked.sequences == 1
    assert (asked.user, asked.max_tokens) == (None, None)
    assert asked.body is body


@pytest.mark.parametrize("prompt", [None, [], {}, [1.5], ["a", 1], [1, [2]], [True], {"text": "hi"}, 7])
def test_a_prompt_of_an_unexpected_shape_is_the_engine_s_to_judge(prompt):
    body = completion(prompt)
    asked = read_completion(body)
    assert (asked.sequences, asked.prompt_tokens, asked.body) == (
        2 if prompt in (["a", 1], [1, [2]]) else 1,
        None,
        body,
    )


def test_one_odd_field_leaves_the_others_readable():
    asked = read_chat(chat(message("user", "hi"), user=7, max_tokens=9, stream=True))
    assert (asked.user, asked.max_tokens, asked.last_user, asked.stream) == (None, 9, "hi", True)


def test_one_odd_message_leaves_the_others_readable():
    asked = read_chat(chat(message("system", "Be brief."), 7, message("user", ["a", {"text": "b"}])))
    assert (asked.system, asked.last_user, asked.message_count) == ("Be brief.", "a\nb", 3)


@pytest.mark.parametrize(
    ("read", "body"),
    [
        (read_chat, chat(message("user", 10**400))),
        (read_chat, chat(message("user", [["x" * 400]]))),
        (read_chat, b'{"model": "m", "messages": "%b"}' % (b"x" * 400)),
        (read_chat, chat("x" * 400)),
        (read_completion, completion({"text": "x" * 400})),
        (read_completion, completion(["x" * 400, 7])),
    ],
)
def test_a_prompt_that_is_not_understood_is_estimated_from_its_bytes(read, body):
    assert 400 <= read(body).text_bytes <= len(body)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("limit", [0, -1, 1.0, "5", 2**53])
def test_a_limit_of_an_unexpected_value_is_still_a_limit_of_the_client(field, limit):
    asked = read_chat(chat(**{field: limit}))
    assert (asked.max_tokens, asked.limits_answer) == (None, True)
    assert not read_chat(chat(**{field: None})).limits_answer


@pytest.mark.parametrize("options", [False, [], "x", {"include_usage": 1}, {"include_usage": "true"}])
def test_stream_options_that_are_not_understood_stay_as_they_are(options):
    body = chat(stream=True, stream_options=options)
    asked = read_chat(body)
    assert asked.upstream_body() is body
    assert not asked.hides_usage


def test_more_answers_than_can_be_planned_count_as_that_many():
    assert read_chat(chat(n=10**30)).sequences == MAX_SEQUENCES
    assert read_completion(completion(["a"] * 2, n=MAX_SEQUENCES)).sequences == MAX_SEQUENCES


def test_many_prompts_are_read():
    assert read_completion(completion(["a"] * 2048)).sequences == 2048


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (read_chat, chat(*[{}] * (MAX_MESSAGES + 1)), "messages"),
        (read_chat, chat(message("user", [{}] * (MAX_PARTS + 1))), "messages"),
        (read_completion, completion(["a"] * (MAX_MESSAGES + 1)), "prompt"),
    ],
)
def test_a_body_of_too_many_parts_is_too_large(read, body, param):
    with pytest.raises(BodyTooLarge) as refusal:
        read(body)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not a JSON object"),
        (b'{"model": "m", "messages": [], "user": "\xff"}', "not UTF-8"),
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
def test_a_number_that_is_too_large_is_unknown(digits, field, sign):
    body = f'{{"model": "m", "messages": [], "{field}": {sign}{"9" * digits}}}'
    asked = read_chat(body.encode())
    assert asked.max_tokens is None
    assert 1 <= asked.sequences <= MAX_SEQUENCES
