import numpy as np
import pytest

from gateway.prediction.histogram import EDGES, MAX_TOKENS, N_BINS, bin_of, lognormal_shares, quantiles
from gateway.scheduling.length import LEVELS


def one_hot(tokens):
    shares = np.zeros(N_BINS)
    shares[bin_of(tokens)] = 1.0
    return shares


def test_the_edges_rise_and_reach_beyond_the_longest_answer():
    assert (np.diff(EDGES) > 0).all()
    assert EDGES[-1] > MAX_TOKENS


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 100, 4096, MAX_TOKENS])
def test_a_length_lies_within_the_edges_of_its_bin(tokens):
    index = bin_of(tokens)
    assert EDGES[index] <= tokens < EDGES[index + 1]


def test_what_is_off_the_scale_counts_at_its_ends():
    assert (bin_of(0), bin_of(10**12)) == (0, N_BINS - 1)


@pytest.mark.parametrize("tokens", [1, 7, 300, 20_000])
def test_where_all_answers_were_alike_every_quantile_is_close_to_them(tokens):
    length = quantiles(one_hot(tokens))
    for level in LEVELS:
        assert length.quantile(level) == pytest.approx(tokens, rel=0.16, abs=0.5)


def test_quantiles_of_a_lognormal_are_its_own():
    length = quantiles(lognormal_shares(200.0, 1.0))
    assert length.quantile(0.5) == pytest.approx(200, rel=0.02)
    assert length.quantile(0.9) == pytest.approx(200 * np.exp(1.2816), rel=0.02)


def test_shares_sum_to_one():
    assert lognormal_shares(115.0, 1.4).sum() == pytest.approx(1.0)


def test_counts_do_as_well_as_shares():
    shares = lognormal_shares(200.0, 1.0)
    assert quantiles(1000 * shares).quantile(0.75) == pytest.approx(quantiles(shares).quantile(0.75))


def test_a_cap_cuts_the_quantiles():
    assert quantiles(one_hot(300), cap=50).quantile(0.5) == 50
