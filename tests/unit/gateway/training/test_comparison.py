from typing import Any

import numpy as np
import pytest

from gateway.training.comparison import MAX_HOLDOUT, Candidate, history_candidate, is_better, split_holdout, strongest
from gateway.training.window import Window


@pytest.fixture
def a_window():
    """Returns a function that builds a window of rows one second apart, with the changes of the test."""

    def build(n: int, **changed) -> Window:
        columns: dict[str, Any] = {
            "features": np.zeros((n, 2), np.float32),
            "tokens": np.arange(1.0, n + 1),
            "arrived_s": np.arange(float(n)),
            "apps": ["chat"] * n,
            "history_p50": np.full(n, np.nan),
            "history_p90": np.full(n, np.nan),
        }
        return Window(**(columns | changed))

    return build


def a_candidate(name: str, quantiles, levels=(0.5, 0.9), known=None) -> Candidate:
    values = np.asarray(quantiles, float)
    return Candidate(name, values, levels, np.ones(len(values), bool) if known is None else np.asarray(known))


def test_the_newest_rows_are_held_out(a_window):
    fit, judge = split_holdout(a_window(100))
    assert (len(fit), len(judge)) == (80, 20)
    assert fit.arrived_s.max() < judge.arrived_s.min()


def test_the_held_out_rows_are_bounded(a_window):
    assert len(split_holdout(a_window(100_000))[1]) == MAX_HOLDOUT


def test_rows_after_a_moment_exclude_the_moment(a_window):
    assert a_window(10).after(6.0).arrived_s.tolist() == [7, 8, 9]
    assert len(a_window(10).after(9.0)) == 0


def test_the_true_quantile_has_the_smallest_loss():
    tokens = np.random.default_rng(3).exponential(100.0, 20_000)
    quantiles = [a_candidate(str(quantile), np.full((20_000, 1), quantile), (0.9,)) for quantile in range(150, 320, 10)]
    assert min(quantiles, key=lambda quantile: quantile.loss(tokens, quantile)).name == "230"  # 100 · ln 10


def test_an_equal_challenger_is_not_better():
    tokens = np.array([10.0, 20.0])
    champion = a_candidate("champion", [[12, 14], [22, 24]])
    assert not is_better(champion, champion, tokens)
    assert is_better(a_candidate("better", [[11, 13], [21, 23]]), champion, tokens)
    assert not is_better(a_candidate("worse", [[30, 40], [50, 60]]), champion, tokens)


def test_only_rows_and_levels_that_the_champion_has_are_compared():
    tokens = np.array([10.0, 20.0, 30.0])
    champion = a_candidate("history", [[10, 15], [np.nan, np.nan], [33, 40]], known=[True, False, True])
    challenger = a_candidate("challenger", [[1, 10, 15], [1, 500, 900], [1, 32, 40]], (0.1, 0.5, 0.9))
    assert is_better(challenger, champion, tokens)
    assert champion.metrics(tokens)["n"] == 2


def test_the_strongest_champion_is_chosen():
    tokens = np.array([10.0, 20.0])
    weak, strong = a_candidate("weak", [[50, 90], [1, 2]]), a_candidate("strong", [[10, 11], [20, 21]])
    challenger = a_candidate("challenger", [[11, 12], [21, 22]])
    assert strongest([weak, strong], challenger, tokens) is strong


def test_history_is_compared_only_on_rows_that_it_predicted(a_window):
    window = a_window(3, history_p50=np.array([5, np.nan, 7.0]), history_p90=np.array([9, np.nan, 9.0]))
    candidate = history_candidate(window)
    assert candidate.known.tolist() == [True, False, True]
    assert candidate.quantiles[candidate.known].tolist() == [[5, 9], [7, 9]]
