import pytest

from gateway.protocol.answers import is_absent, read_answer


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
        ("{}", None),
        ('{"message": "", "type": "", "code": null}', None),
        ('{"message": "", "code": 500}', "no reason given"),
        ("false", None),
        ('""', None),
        ("[]", None),
        ('[{}, {"message": "out of memory"}]', "out of memory"),
        ("7", "no reason given"),
        ("null", None),
    ],
)
def test_an_error_instead_of_an_answer_is_read(error, failure):
    assert read_answer(b'{"error": %s}' % error.encode()).failure == failure


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"usage": 7}', b'{"choices": [7]}', b"\xff", b"[" * 10**5, b"null"])
def test_an_answer_that_is_not_understood_has_nothing_that_is_known(body):
    answer = read_answer(body)
    assert (answer.usage, answer.finish_reason, answer.failure) == (None, None, None)


@pytest.mark.parametrize("count", ["5.0", '"5"', "-1", "99999999999", "[]", "1e400", "NaN"])
def test_a_count_that_is_no_whole_number_is_unknown_and_the_other_is_kept(count):
    answer = read_answer(
        b'{"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": %b, "completion_tokens": 3}}'
        % count.encode()
    )
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.finish_reason) == (None, 3, "stop")


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"choices": [{"finish_reason": "length"}]}',
        b'{"choices": [{"finish_reason": "length", "logprobs": [NaN, -Infinity]}]}  \n',
        b'{"choices": [{"finish_reason": "length", "text": "\\ud83d"}]}',
        b'{"choices": [{"finish_reason": "length", "text": "\xff"}], "usage": []}',
        b'{"choices": [7, {"finish_reason": "length", "index": "0"}]}',
    ],
)
def test_the_rest_of_an_odd_answer_is_read(body):
    assert read_answer(body).finish_reason == "length"


def test_a_flat_error_of_an_older_engine_is_a_failure():
    assert read_answer(b'{"object": "error", "message": "too long", "code": 400}').failure == "too long"


@pytest.mark.parametrize("body", [b"", b" \r\n" * 50, b"<html>", b"\n<!doctype html>"])
def test_an_empty_body_and_a_web_page_are_no_answer(body):
    assert is_absent(body)


def test_an_answer_that_a_stopping_engine_aborts_is_a_failure():
    answer = read_answer(b'{"choices": [{"finish_reason": "abort", "text": "half"}]}')
    assert answer is not None
    assert answer.failure == "it was stopped before the answer's end"
