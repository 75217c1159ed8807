import json

import pytest

from gateway.protocol.edits import ask_for_usage, with_default


def test_options_that_the_client_set_stay_set():
    asked = ask_for_usage(b'{"stream_options": {"include_usage": false, "continuous_usage_stats": true}}')
    assert json.loads(asked) == {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}


@pytest.mark.parametrize("body", [b"{}", b"{ }", b' {"model" : "m"}\n', b'{"x": "}"}', b'{"x": {}}'])
def test_what_is_set_is_set_at_the_end_and_no_other_byte_moves(body):
    for edited in (ask_for_usage(body), with_default(body, "priority", 7)):
        added = json.loads(edited)
        before, after = body[: body.rindex(b"}")], body[body.rindex(b"}") :]
        assert edited.startswith(before)
        assert edited.endswith(after)
        assert len(added) == len(json.loads(body)) + 1
    assert json.loads(with_default(body, "priority", 7))["priority"] == 7


@pytest.mark.parametrize("own", [b"0", b"-5", b'"high"'])
def test_a_priority_that_the_client_set_is_its_own(own):
    body = b'{"model": "m", "priority": %b }' % own
    assert with_default(body, "priority", 7) == body


def test_a_priority_of_null_is_none():
    assert json.loads(with_default(b'{"priority": null, "x": 1}', "priority", 7)) == {"priority": 7, "x": 1}


@pytest.mark.parametrize("body", [b'{"messages": [{"priority": 3}]}', b'{"x": "\\"priority\\""}', b'{"x": "priority"}'])
def test_a_priority_that_is_somewhere_else_is_not_the_request_s(body):
    assert json.loads(with_default(body, "priority", 7)) == {**json.loads(body), "priority": 7}
