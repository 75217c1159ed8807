import pytest

from gateway.prediction.history import Caller
from gateway.prediction.predictor import Outcome, Predictor

CALLER = Caller("mail", "llama", "ann")


def forecast(predictor, caller=CALLER, *, text_bytes=4000, prompt_tokens=None, max_tokens=None, context=None):
    return predictor.forecast(
        caller, text_bytes=text_bytes, prompt_tokens=prompt_tokens, max_tokens=max_tokens, context=context
    )


def taught(output_tokens, *, times=50, input_tokens=1000, sequences=1):
    predictor = Predictor()
    for _ in range(times):
        predictor.learn_one(CALLER, forecast(predictor), Outcome(4000, input_tokens, output_tokens, sequences))
    return predictor


def test_a_stranger_gets_a_forecast_too():
    expected = forecast(Predictor())
    assert (expected.source, expected.prompt_tokens) == ("prior", 1000)
    assert 1 <= expected.p50_tokens < expected.p90_tokens


def test_a_prompt_of_token_ids_is_counted_and_not_estimated():
    assert forecast(Predictor(), text_bytes=0, prompt_tokens=77).prompt_tokens == 77


def test_what_was_seen_is_expected_again():
    expected = forecast(taught(600, input_tokens=2000))
    assert expected.p50_tokens == pytest.approx(600, rel=0.2)
    assert expected.prompt_tokens == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize(
    ("max_tokens", "context", "cap"), [(50, None, 50), (None, 1050, 50), (30, 1050, 30), (80, 1050, 50), (9, 500, 1)]
)
def test_an_answer_fits_its_limit_and_the_rest_of_the_context(max_tokens, context, cap):
    expected = forecast(taught(600, input_tokens=None), max_tokens=max_tokens, context=context)
    assert (expected.p50_tokens, expected.p90_tokens) == (cap, cap)


def test_answers_are_learned_one_by_one_though_they_came_together():
    assert forecast(taught(2400, sequences=4)).p50_tokens == pytest.approx(600, rel=0.2)


def test_an_engine_that_does_not_count_teaches_nothing_of_prompts():
    assert forecast(taught(600, input_tokens=None)).prompt_tokens == 1000


def test_every_outcome_is_measured_against_what_was_expected():
    predictor = taught(600, times=60)
    assert predictor.quality.seen == 60
    assert predictor.quality.mae() < 400
