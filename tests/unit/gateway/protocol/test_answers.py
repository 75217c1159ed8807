import pytest

from gateway.protocol.answers import read_answer


def test_the_engine_s_counts_are_read():
    body = b'{"usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}}'
    usage = read_answer(body).usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 3)
    assert usage.prompt_tokens_details.cached_tokens == 4


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ("[]", None),
        ('[{"finish_reason": null}]', None),
        ('[{}, {"finish_reason": "stop"}]', "stop"),
        ('[{"finish_reason": "stop"}, {"finish_reason": "length"}]', "length"),
        ("null", None),
    ],
)
def test_length_has_precedence_among_the_finish_reasons(choices, reason):
    assert read_answer(b'{"choices": %s}' % choices.encode()).finish_reason == reason


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ('{"message": "out of memory"}', "out of memory"),
        ('"out of memory"', "out of memory"),
        ('{"code": 7}', "no reason given"),
        ("{}", "no reason given"),
        ("null", None),
    ],
)
def test_an_error_instead_of_an_answer_is_read(error, failure):
    assert read_answer(b'{"error": %s}' % error.encode()).failure == failure


@pytest.mark.parametrize("body", [b"", b"no", b"[]", b'{"usage": 7}', b'{"choices": [7]}', b"\xff", b"[" * 10**5])
def test_a_body_that_is_not_an_answer_is_none(body):
    assert read_answer(body) is None


def test_an_answer_that_a_stopping_engine_aborts_is_a_failure():
    answer = read_answer(b'{"choices": [{"finish_reason": "abort", "text": "half"}]}')
    assert answer is not None
    assert answer.failure == "it was stopped before the answer's end"
