import json

import msgspec
import pytest

from gateway.errors import BodyTooLarge
from gateway.protocol import generation_request
from gateway.protocol.generation_request import ModelRules, check_size, read_routing
from gateway.protocol.openai import read_chat, read_completion
from gateway.protocol.responses import read_response_request

RULES = ModelRules({"gpt-4o-mini": "llama"}, {"llama": 1024})
FIELDS = ("model", "max_tokens", "sequences", "text_bytes", "last_user", "message_count")


def chat(**fields):
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def applied(body, read=read_chat):
    """Read a body and apply the rules."""
    request = read(body)
    RULES.apply(request)
    return request


def used_fields(request):
    return {name: getattr(request, name) for name in FIELDS}


def completion(rest=b""):
    return read_completion(b'{"prompt":"a","model":"m"%b}' % rest)


def test_an_alias_is_sent_and_scheduled_as_the_model_that_it_stands_for():
    request = applied(chat(model="gpt-4o-mini", max_tokens=7))
    body = request.upstream_body()
    assert json.loads(body) == {"messages": [{"role": "user", "content": "hi"}], "model": "llama", "max_tokens": 7}
    assert (request.model, request.max_tokens) == ("llama", 7)
    assert used_fields(request) == used_fields(read_chat(body))


@pytest.mark.parametrize("model", ["llama", "gpt-4o-mini"])
def test_a_request_without_a_length_gets_the_default_of_its_model(model):
    request = applied(chat(model=model))
    body = request.upstream_body()
    assert json.loads(body)["max_tokens"] == 1024
    assert used_fields(request) == used_fields(read_chat(body))
    assert request.max_tokens == 1024


def test_a_length_of_null_is_replaced_by_the_default():
    body = applied(chat(model="llama", max_tokens=None)).upstream_body()
    assert body.count(b"max_tokens") == 1
    assert json.loads(body)["max_tokens"] == 1024


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_request_with_a_length_keeps_it(field):
    request = applied(chat(model="llama", **{field: 5000}))
    assert request.upstream_body() == chat(model="llama", **{field: 5000})
    assert request.max_tokens == 5000


def test_a_request_that_no_rule_concerns_is_not_changed():
    body = b'{ "model":"mistral" , "messages":[{"role":"user","content":"hi"}],"x":1.50 }'
    request = applied(body)
    assert request.upstream_body() is body
    assert msgspec.structs.asdict(request) == msgspec.structs.asdict(read_chat(body))


def test_all_other_values_stay_byte_for_byte():
    body = '{"x": 1.50, "model": "gpt-4o-mini", "messages":[], "y": {"é": "\\u00e9",  "n": 1e400}, "max_tokens": 1}'
    expected = '{"x":1.50,"model":"llama","messages":[],"y":{"é": "\\u00e9",  "n": 1e400},"max_tokens":1}'
    assert applied(body.encode()).upstream_body() == expected.encode()


def test_an_alias_is_replaced_even_if_its_key_is_escaped():
    body = applied(b'{"mod\\u0065l": "gpt-4o-mini", "messages": [], "max_tokens": 1}').upstream_body()
    assert body == b'{"model":"llama","messages":[],"max_tokens":1}'


def test_without_rules_every_name_is_the_model_s_own():
    assert ModelRules().resolve("gpt-4o-mini") == "gpt-4o-mini"


def test_the_default_length_is_set_in_the_field_of_the_api():
    request = applied(b'{"model":"llama","input":"hi"}', read_response_request)
    body = request.upstream_body()
    assert json.loads(body) == {"model": "llama", "input": "hi", "max_output_tokens": 1024}
    assert used_fields(request) == used_fields(read_response_request(body))


# The token counts of a stream


def test_other_stream_options_of_the_client_stay_set():
    request = completion(b',"stream":true,"stream_options":{"include_usage":false,"continuous_usage_stats":true}')
    options = json.loads(request.upstream_body())["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}


# Fields that the gateway adds


ENDS = [b"}", b" }", b' ,"x": "}"}', b',"x": {}}\n']


@pytest.mark.parametrize("end", ENDS)
def test_a_field_is_added_at_the_end_and_no_other_byte_changes(end):
    body = b' {"prompt" : "a", "model":"m"' + end
    plain, stream = read_completion(body), read_completion(body)
    stream.stream = True
    for edited in (stream.upstream_body(), plain.upstream_body(priority=7)):
        before, after = body[: body.rindex(b"}")], body[body.rindex(b"}") :]
        assert edited.startswith(before)
        assert edited.endswith(after)
        assert len(json.loads(edited)) == len(json.loads(body)) + 1
    assert json.loads(plain.upstream_body(priority=7))["priority"] == 7


@pytest.mark.parametrize("own", [b"0", b"-5", b'"high"'])
@pytest.mark.parametrize("key", [b"priority", b"pri\\u006frity"])
def test_a_priority_that_the_client_set_does_not_reach_the_engine(own, key):
    body = b'{"prompt":"a","model":"m","%b": %b }' % (key, own)
    request = completion_with_edits(body)
    assert json.loads(request.upstream_body()) == {"prompt": "a", "model": "m"}
    assert json.loads(request.upstream_body(priority=7)) == {"prompt": "a", "model": "m", "priority": 7}


@pytest.mark.parametrize("key", [b"request_id", b"request\\u005fid"])
def test_a_request_id_that_the_client_set_is_replaced_by_ours(key):
    body = b'{"prompt":"a","%b":"mine","model":"m"}' % key
    assert json.loads(completion_with_edits(body).upstream_body())["request_id"] == "ours"


def completion_with_edits(body):
    request = read_completion(body)
    request.edits.update(read_routing(body, "ours")[1])
    return request


@pytest.mark.parametrize("limit", [0, -1, "5", 1.5])
def test_a_limit_that_is_not_understood_is_not_replaced_by_the_default(limit):
    body = chat(model="llama", max_tokens=limit)
    assert applied(body).upstream_body() is body


def test_half_a_character_and_a_byte_order_mark_are_repaired():
    name, _, repaired = read_routing(
        b'\xef\xbb\xbf{"model": "m", "x": "\\ud83d", "y": "\\ud83d\\ude00 \\\\ud83d \\ude00"}', "ours"
    )
    assert name == "m"
    assert repaired == b'{"model": "m", "x": "\\ufffd", "y": "\\ud83d\\ude00 \\\\ud83d \\ufffd"}'


def test_a_body_of_too_many_values_is_too_large(monkeypatch):
    monkeypatch.setattr(generation_request, "MAX_VALUES", 1000)
    check_size(b"[" + b"1," * 1000 + b"1]")
    with pytest.raises(BodyTooLarge):
        check_size(b"[" + b"1," * 1001 + b"1]")


def test_a_priority_of_null_is_replaced():
    body = json.loads(completion(b',"priority":null,"x":1').upstream_body(priority=7))
    assert body == {"prompt": "a", "model": "m", "priority": 7, "x": 1}


@pytest.mark.parametrize(
    "rest",
    [b',"messages":[{"priority": 3}]', b',"x":"\\"priority\\""', b',"x":"priority"'],
    ids=["field", "text", "word"],
)
def test_the_word_priority_elsewhere_in_the_body_is_not_the_field(rest):
    request = completion(rest)
    assert json.loads(request.upstream_body(priority=7)) == {**json.loads(request.body), "priority": 7}


# Batches


def body(**fields):
    return json.dumps({"model": "llama", "prompt": "a", "max_tokens": 9, **fields}).encode()


def batch_key(json_body):
    return read_completion(json_body).batch_key()


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "something else"},
        {"user": "ann"},
        {"safety_identifier": "ann"},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "stop": None},
    ],
)
def test_requests_that_differ_in_member_fields_share_a_call(fields):
    assert batch_key(body(**fields)) == batch_key(body())


@pytest.mark.parametrize(
    "fields", [{"model": "mistral"}, {"max_tokens": 8}, {"temperature": 0}, {"stop": ["x"]}, {"unknown": 1}]
)
def test_requests_that_differ_in_what_is_generated_do_not_share_a_call(fields):
    assert batch_key(body(**fields)) is not None
    assert batch_key(body(**fields)) != batch_key(body())


@pytest.mark.parametrize(
    "fields",
    [{"prompt": ["a"]}, {"prompt": [1, 2]}, {"n": 2}, {"best_of": 2}, {"echo": True}, {"logprobs": 0}],
)
def test_requests_with_an_answer_of_another_shape_are_sent_alone(fields):
    assert batch_key(body(**fields)) is None


def test_chats_are_sent_alone():
    assert read_chat(chat(model="llama")).batch_key() is None


def test_the_order_of_the_fields_does_not_matter_for_a_batch():
    assert batch_key(b'{"prompt": "a", "model": "m", "top_p": 1}') == batch_key(b'{"top_p":1,"model":"m","prompt":"b"}')
