import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.length import LEVELS, LengthQuantiles

quantiles = st.lists(st.floats(1, 1e5), min_size=len(LEVELS), max_size=len(LEVELS)).map(lambda q: tuple(sorted(q)))


@given(quantiles)
def test_given_quantiles_come_back(tokens):
    length = LengthQuantiles.of(tokens)
    for level, expected in zip(LEVELS, tokens, strict=True):
        assert length.at(level) == pytest.approx(expected, rel=1e-4)


@given(quantiles, st.floats(0.01, 0.98), st.floats(0.001, 0.01))
def test_quantiles_never_fall_with_their_level(tokens, level, step):
    length = LengthQuantiles.of(tokens)
    assert length.at(level + step) >= length.at(level) * (1 - 1e-9)


@given(quantiles, st.integers(1, 5000), st.floats(0.05, 0.95))
def test_a_cap_bounds_every_quantile_and_what_remains(tokens, cap, level):
    length = LengthQuantiles.of(tokens, cap=cap)
    assert length.at(level) <= cap
    for generated in (0, 1, cap // 2, cap - 1, cap):
        assert generated + length.remaining(generated, level) <= cap + 1


@given(quantiles, st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_an_answer_that_goes_on_has_at_least_one_token_to_come(tokens, generated, level):
    assert LengthQuantiles.of(tokens).remaining(generated, level) >= 1.0


@given(quantiles, st.integers(1, 10**5), st.integers(1, 10**4))
def test_the_expected_total_grows_with_every_token_seen(tokens, generated, more):
    length = LengthQuantiles.of(tokens)
    before = generated + length.remaining(generated, 0.75)
    after = generated + more + length.remaining(generated + more, 0.75)
    assert after >= before * (1 - 1e-6)


def test_a_wrong_number_of_quantiles_is_refused():
    with pytest.raises(ValueError, match="5 quantiles given, 6 expected"):
        LengthQuantiles.of((1, 2, 3, 4, 5))
