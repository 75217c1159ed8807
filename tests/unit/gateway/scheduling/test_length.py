import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.length import LEVELS, LengthQuantiles

quantiles = st.lists(st.floats(1, 1e5), min_size=len(LEVELS), max_size=len(LEVELS)).map(lambda q: tuple(sorted(q)))
spread = st.tuples(st.floats(1, 1e4), st.floats(1.05, 3)).map(lambda s: tuple(s[0] * s[1] ** i for i in range(6)))

AHEAD = np.array([0.0, 8.0, 20.0, 50.0, 200.0, 1000.0, 20_000.0])


@given(quantiles)
def test_given_quantiles_are_returned(tokens):
    length = LengthQuantiles.of(tokens)
    for level, expected in zip(LEVELS, tokens, strict=True):
        assert length.quantile(level) == pytest.approx(expected, rel=1e-4)


@given(quantiles, st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_quantiles_never_fall_with_their_level(tokens, level, step):
    length = LengthQuantiles.of(tokens)
    assert length.quantile(level + step) >= length.quantile(level) * (1 - 1e-9)


@given(quantiles, st.integers(1, 5000), st.floats(0.05, 0.95))
def test_cap_bounds_every_quantile_the_mean_and_the_rest(tokens, cap, level):
    length = LengthQuantiles.of(tokens, cap=cap)
    assert length.quantile(level) <= cap
    assert length.mean() <= cap * (1 + 1e-9)
    for generated in (0, 1, cap // 2, cap - 1, cap):
        assert generated + length.remaining(generated, level) <= cap + 1


@given(quantiles)
def test_mean_lies_among_the_quantiles(tokens):
    mean = LengthQuantiles.of(tokens).mean()
    assert tokens[0] * (1 - 1e-4) <= mean <= tokens[-1] * (1 + 1e-4)


@given(quantiles, st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_unfinished_answer_has_at_least_one_token_left(tokens, generated, level):
    assert LengthQuantiles.of(tokens).remaining(generated, level) >= 1.0


@given(quantiles, st.integers(1, 10**5), st.integers(1, 10**4))
def test_expected_total_grows_with_every_token(tokens, generated, more):
    length = LengthQuantiles.of(tokens)
    before = generated + length.remaining(generated, 0.75)
    after = generated + more + length.remaining(generated + more, 0.75)
    assert after >= before * (1 - 1e-6)


@given(quantiles, st.none() | st.integers(1, 5000), st.floats(0, 1e5))
def test_probability_of_still_running_falls_from_one_to_zero(tokens, cap, generated):
    running = LengthQuantiles.of(tokens, cap=cap).still_running(generated, AHEAD)
    assert running[0] == 1.0
    assert (np.diff(running) <= 1e-12).all()
    assert running.min() >= 0.0
    assert cap is None or not running[(AHEAD > 0) & (generated + AHEAD >= cap)].any()


@given(spread, st.integers(0, 500), st.floats(0.1, 0.9))
def test_remaining_quantile_is_exceeded_with_its_probability(tokens, generated, level):
    length = LengthQuantiles.of(tokens)
    ahead = length.remaining(generated, level)
    running = length.still_running(generated, np.array([0.0, ahead]))[1]
    # Below one token and far above the last quantile nothing is known.
    assert running == pytest.approx(1 - level, abs=1e-6) or ahead == 1.0 or generated > tokens[-1]


@given(spread, st.floats(0.1, 10), st.floats(0.05, 0.95))
def test_scaled_length_is_a_multiple(tokens, factor, level):
    length = LengthQuantiles.of(tokens)
    assert length.scaled(factor).quantile(level) == pytest.approx(factor * length.quantile(level))


def test_scaled_length_keeps_its_cap():
    length = LengthQuantiles.of((10, 20, 40, 80, 150, 200), cap=100).scaled(10)
    assert (length.quantile(0.1), length.quantile(0.5)) == (pytest.approx(100), 100)


def test_wrong_number_of_quantiles_is_rejected():
    with pytest.raises(ValueError, match="tokens: 5 quantiles given, 6 expected"):
        LengthQuantiles.of((1, 2, 3, 4, 5))
