import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.demand import BIAS_PRIOR_ANSWERS, BIAS_TOLERANCE, BIAS_WINDOW, MAX_BIAS, LengthBias


def bias_after(answers, *, predicted=100.0, came=100):
    bias = LengthBias()
    for _ in range(answers):
        bias.learn_one(predicted, came)
    return bias


def test_without_answers_there_is_no_bias():
    assert LengthBias().factor == 1.0


def test_noise_is_not_corrected():
    assert bias_after(1000, came=round(100 * BIAS_TOLERANCE) - 2).factor == 1.0
    assert bias_after(1000, came=round(100 / BIAS_TOLERANCE) + 2).factor == 1.0


@pytest.mark.parametrize("came", [10, 30, 300, 1000])
def test_systematic_error_of_a_predictor_is_corrected(came):
    assert bias_after(2 * BIAS_WINDOW, came=came).factor == pytest.approx(came / 100, rel=0.02)


def test_few_answers_are_not_enough():
    assert bias_after(1, came=200).factor == 1.0
    assert 1.0 < bias_after(round(BIAS_PRIOR_ANSWERS) // 2, came=1000).factor < 10.0
    assert bias_after(round(BIAS_PRIOR_ANSWERS) + 5, came=1000).factor == pytest.approx(10.0)


def test_unbiased_predictor_with_large_errors_is_not_corrected():
    chance, bias = random.Random(0), LengthBias()
    for _ in range(1000):
        bias.learn_one(chance.lognormvariate(4.0, 0.5), round(chance.lognormvariate(4.0, 0.5)))
    assert bias.factor == 1.0


def test_old_errors_are_forgotten():
    bias = bias_after(BIAS_WINDOW, came=1000)
    for _ in range(8 * BIAS_WINDOW):
        bias.learn_one(100.0, 100)
    assert bias.factor == 1.0


@given(st.lists(st.tuples(st.floats(0.5, 1e6), st.integers(1, 10**6)), max_size=60))
def test_factor_is_bounded(answers):
    bias = LengthBias()
    for predicted, came in answers:
        bias.learn_one(predicted, came)
        assert 1 / MAX_BIAS <= bias.factor <= MAX_BIAS
