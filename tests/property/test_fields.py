"""Any bytes that a client sends are read, or rejected with the field's name; forwarded bytes stay unchanged."""

import json
import string

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.protocol.generation_request import GenerationRequest
from gateway.protocol.openai import read_chat, read_completion

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
FIELDS = [
    "model",
    "messages",
    "prompt",
    "n",
    "max_tokens",
    "max_completion_tokens",
    "stream",
    "stream_options",
    "user",
    "tools",
    "response_format",
    "temperature",
    "stop",
    "reasoning_effort",
]
messages = st.lists(
    st.fixed_dictionaries({}, optional={"role": values, "content": values, "tool_calls": values}), max_size=3
)
likely = {
    "model": st.text(max_size=6),
    "messages": messages,
    "prompt": st.one_of(st.text(max_size=6), st.lists(st.text(max_size=3)), st.lists(st.integers(0, 9))),
    "n": st.integers(-1, 10**30),
    "max_tokens": st.integers(-1, 10**400),
    "stream": st.booleans(),
    "temperature": st.one_of(st.floats(0, 2), st.integers(-1, 10**400)),
    "stop": st.one_of(st.text(max_size=3), st.lists(st.text(max_size=3))),
}
bodies = st.one_of(
    values,
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, values)),
    st.fixed_dictionaries({}, optional={name: likely.get(name, values) for name in FIELDS}),
)


def read_or_refused(read, body):
    try:
        return read(body)
    except InvalidRequest as refusal:
        return refusal


@given(st.one_of(bodies.map(lambda body: json.dumps(body).encode()), st.binary(max_size=60)))
def test_a_body_is_read_or_rejected_without_another_error(body):
    for read in (read_chat, read_completion):
        outcome = read_or_refused(read, body)
        assert isinstance(outcome, GenerationRequest | InvalidRequest)


@given(bodies)
def test_the_fields_that_are_read_are_usable(body):
    for read in (read_chat, read_completion):
        parsed = read_or_refused(read, json.dumps(body).encode())
        if isinstance(parsed, GenerationRequest):
            assert parsed.sequences >= 1
            assert parsed.text_bytes >= 0
            assert parsed.max_tokens is None or 1 <= float(parsed.max_tokens) < 2**63


@given(st.sampled_from(["model", "n", "max_tokens", "stream", "user", "messages", "stream_options"]), values)
def test_an_error_names_the_wrong_field(field, value):
    good = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    outcome = read_or_refused(read_chat, json.dumps({**good, field: value}).encode())
    if isinstance(outcome, InvalidRequest):
        assert outcome.param is not None
        assert outcome.param.startswith(field)
        assert field in outcome.message


@given(st.lists(st.tuples(st.sampled_from(["system", "developer", "user", "assistant"]), st.text()), max_size=5))
def test_text_is_measured_in_utf8_bytes(dialogue):
    body = {"model": "m", "messages": [{"role": role, "content": text} for role, text in dialogue]}
    for ensure_ascii in (True, False):
        parsed = read_chat(json.dumps(body, ensure_ascii=ensure_ascii).encode())
        assert parsed.text_bytes == sum(len(text.encode()) for _, text in dialogue)
        assert parsed.last_user == next((text for role, text in reversed(dialogue) if role == "user"), None)


@given(st.lists(st.text(max_size=5), min_size=1, max_size=5), st.integers(1, 5))
def test_every_prompt_of_a_list_asks_for_n_answers(prompts, n):
    parsed = read_completion(json.dumps({"model": "m", "prompt": prompts, "n": n}).encode())
    assert parsed.sequences == n * len(prompts)
    assert parsed.text_bytes == sum(len(prompt.encode()) for prompt in prompts)


@given(st.lists(st.lists(st.integers(0, 10**6), max_size=5), min_size=1, max_size=5))
def test_token_ids_are_counted_exactly(prompts):
    parsed = read_completion(json.dumps({"model": "m", "prompt": prompts}).encode())
    assert (parsed.prompt_tokens, parsed.sequences) == (sum(map(len, prompts)), len(prompts))


def request_of(body, *, stream=False):
    """Return a request that has this body, whatever its fields are."""
    request = read_chat(b'{"model":"m","messages":[]}')
    request.body, request.stream = body.encode(), stream
    return request


raw_values = st.one_of(
    st.sampled_from(
        ["1.50", "1e5", "-0", '{ "a" : [ 1 , 2 ] }', "[ ]", '"\\u00e9\\/"', "12345678901234567890123", "null"]
    ),
    values.map(json.dumps),
)
keys = st.text(string.ascii_letters + "_", min_size=1, max_size=8).filter(lambda key: key != "stream_options")
options = st.sampled_from([None, "null", "{}", '{"include_usage":false}', '{"x":1.50,"include_usage":null}'])


@given(st.dictionaries(keys, raw_values, max_size=6), options)
def test_every_other_value_stays_byte_for_byte(fields, stream_options):
    given_fields = fields if stream_options is None else {**fields, "stream_options": stream_options}
    body = "{" + " , ".join(f'"{key}" : {raw}' for key, raw in given_fields.items()) + "}"

    parsed = request_of(body, stream=True).upstream_body().decode()

    assert json.loads(parsed)["stream_options"]["include_usage"] is True
    assert list(json.loads(parsed)) == list(dict.fromkeys([*given_fields, "stream_options"]))
    colon = " : " if stream_options is None else ":"
    for key, raw in fields.items():
        assert f'"{key}"{colon}{raw}' in parsed
    if stream_options and "1.50" in stream_options:
        assert '"stream_options":{"x":1.50,' in parsed


@given(st.dictionaries(keys, raw_values, max_size=4), options)
def test_adding_token_counts_twice_changes_nothing(fields, stream_options):
    given_fields = fields if stream_options is None else {**fields, "stream_options": stream_options}
    body = "{" + ",".join(f'"{key}":{raw}' for key, raw in given_fields.items()) + "}"
    once = request_of(body, stream=True).upstream_body()
    assert json.loads(request_of(once.decode(), stream=True).upstream_body()) == json.loads(once)


@given(st.dictionaries(keys, raw_values, max_size=6), st.integers(-(2**31), 2**31 - 1))
def test_only_the_priority_is_added(fields, priority):
    body = "{" + " , ".join(f'"{key}" : {raw}' for key, raw in fields.items()) + "}"
    ranked = request_of(body).upstream_body(priority).decode()
    if fields.get("priority", "null") != "null":
        assert ranked == body
        return
    assert json.loads(ranked) == {**json.loads(body), "priority": priority}
    if "priority" not in fields:
        assert ranked.startswith(body[:-1])
