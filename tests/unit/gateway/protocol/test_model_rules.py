import json

import pytest

from gateway.protocol.edits import with_fields
from gateway.protocol.fields import read_chat
from gateway.protocol.model_rules import ModelRules
from gateway.protocol.responses import read_response_request

RULES = ModelRules({"gpt-4o-mini": "llama"}, {"llama": 1024})


def chat(**fields):
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def applied(**fields):
    body = chat(**fields)
    return RULES.apply(body, read_chat(body))


def test_an_alias_is_sent_and_scheduled_as_the_model_that_it_stands_for():
    body, asked = applied(model="gpt-4o-mini", max_tokens=7)
    assert json.loads(body) == {"messages": [{"role": "user", "content": "hi"}], "model": "llama", "max_tokens": 7}
    assert (asked.model, asked.max_tokens) == ("llama", 7)
    assert asked == read_chat(body)


@pytest.mark.parametrize("model", ["llama", "gpt-4o-mini"])
def test_a_request_without_a_length_gets_its_model_s(model):
    body, asked = applied(model=model)
    assert json.loads(body)["max_tokens"] == 1024
    assert asked == read_chat(body)
    assert asked.max_tokens == 1024


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_request_with_a_length_keeps_it(field):
    body, asked = applied(model="llama", **{field: 5000})
    assert body == chat(model="llama", **{field: 5000})
    assert asked.max_tokens == 5000


def test_what_no_rule_is_about_is_not_touched():
    body = b'{ "model":"mistral" , "messages":[{"role":"user","content":"hi"}],"x":1.50 }'
    asked = read_chat(body)
    same = RULES.apply(body, asked)
    assert same[0] is body
    assert same[1] is asked


def test_all_other_values_stay_byte_for_byte():
    body = '{"x": 1.50, "model": "gpt-4o-mini", "y": {"é": "\\u00e9",  "n": 1e400}}'.encode()
    expected = '{"x":1.50,"model":"llama","y":{"é": "\\u00e9",  "n": 1e400}}'.encode()
    assert with_fields(body, {"model": "llama"}) == expected


def test_without_rules_every_name_is_a_model_s_own():
    assert ModelRules().resolve("gpt-4o-mini") == "gpt-4o-mini"


def test_the_default_length_goes_in_the_field_of_its_api():
    body = b'{"model":"llama","input":"hi"}'
    changed, asked = RULES.apply(body, read_response_request(body), "max_output_tokens")
    assert json.loads(changed) == {"model": "llama", "input": "hi", "max_output_tokens": 1024}
    assert asked == read_response_request(changed)
