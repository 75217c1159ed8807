import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from gateway.prediction.metrics import kendall_tau

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=40)


@given(pairs)
def test_tau_with_ties_is_that_of_scipy(rows):
    predicted, actual = np.array(rows, float).T
    expected = kendalltau(predicted, actual).statistic
    tau = kendall_tau(predicted, actual)
    assert np.isnan(expected) if tau is None else tau == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("values", [3, 1000, 10**9])
def test_tau_of_many_rows_is_that_of_scipy(values):
    draw = np.random.default_rng(0)
    predicted = draw.integers(0, values, 20_001).astype(float)
    actual = np.round(predicted + draw.normal(scale=values / 3, size=20_001))
    assert kendall_tau(predicted, actual) == pytest.approx(kendalltau(predicted, actual).statistic, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_tau_of_fewer_than_two_rows_is_undefined(n):
    assert kendall_tau(np.ones(n), np.ones(n)) is None
