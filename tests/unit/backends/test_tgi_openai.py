import json

import pytest

from backends.tgi_openai import adapt

PATH = "/v1/chat/completions"


def adapted(**fields):
    translation = adapt(PATH, json.dumps(fields).encode())
    return None if translation is None else json.loads(translation.body)


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"prompt": "Once"}, {"prompt": ["Once"]}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 5}),
        ({"max_tokens": 9, "max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"top_p": 1, "seed": 2}, {"seed": 2}),
        ({"top_p": 1.0}, {}),
    ],
)
def test_fields_that_differ_in_tgi_are_changed(fields, sent):
    assert adapted(**fields) == sent


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": ["x"], "prompt": ["Once"], "max_tokens": 5, "top_p": 0.9},
        {"stop": None, "top_p": None, "max_completion_tokens": None},
        {"messages": [{"role": "user", "content": "hi", "stop": "x"}], "unknown": {"stop": "y"}},
    ],
)
def test_request_without_such_fields_is_not_changed(fields):
    assert adapted(**fields) is None


def test_unknown_fields_and_numbers_keep_their_bytes():
    translation = adapt(PATH, b'{"seed": 12345678901234567890, "x": 1.10e0, "stop": "\\u00e9"}')
    assert translation.body == b'{"seed":12345678901234567890,"x":1.10e0,"stop":["\\u00e9"]}'


def test_the_answer_is_not_changed():
    translation = adapt(PATH, b'{"stop": "x"}')
    assert (translation.path, translation.whole(b"a"), translation.feed(b"b")) == (PATH, b"a", b"b")
