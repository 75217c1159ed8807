"""Whatever was learned: a prediction is a distribution within its bounds, and says nothing of the order of the past."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction.histogram import EDGES, MAX_TOKENS, bin_of
from gateway.prediction.history import Caller, HistoryPredictor
from gateway.prediction.quality import RecentQuality

callers = st.builds(
    Caller,
    app=st.sampled_from(["mail", "chat"]),
    model=st.sampled_from(["llama", "mistral"]),
    user=st.sampled_from([None, "ann", "bob"]),
)
lessons = st.lists(st.tuples(callers, st.integers(0, 10**6), st.integers(1, 2000)), max_size=12)
levels = (0.1, 0.3, 0.5, 0.8, 0.95, 0.99)


def quantiles(predictor, caller, cap=None):
    length = predictor.predict_one(caller, cap).length
    return [length.quantile(level) for level in levels]


@given(st.integers(1, MAX_TOKENS))
def test_a_length_lies_within_the_edges_of_its_bin(tokens):
    index = bin_of(tokens)
    assert EDGES[index] <= tokens < EDGES[index + 1]


@given(lessons, callers, st.one_of(st.none(), st.integers(1, 10**5)))
def test_quantiles_rise_with_their_level_and_stay_within_the_cap(taught, caller, cap):
    predictor = HistoryPredictor()
    for lesson_caller, tokens, count in taught:
        predictor.learn_one(lesson_caller, tokens, count=count)
    values = quantiles(predictor, caller, cap)
    assert all(lower <= higher for lower, higher in pairwise(values))
    assert values[0] >= 1 - 1e-9
    assert cap is None or values[-1] <= cap


@given(lessons.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), callers)
def test_a_warm_start_does_not_depend_on_the_order_of_its_rows(orders, caller):
    predictions = []
    for rows in orders:
        predictor = HistoryPredictor()
        predictor.warm_up(rows)
        predictions.append((predictor.predict_one(caller, None).source, quantiles(predictor, caller)))
    assert predictions[0][0] == predictions[1][0]
    assert predictions[0][1] == pytest.approx(predictions[1][1])


def tau_b(pairs):
    """Kendall's tau-b, pair by pair."""
    concordant = discordant = tied_x = tied_y = 0
    for i, (x, y) in enumerate(pairs):
        for other_x, other_y in pairs[:i]:
            product = (x - other_x) * (y - other_y)
            concordant += product > 0
            discordant += product < 0
            tied_x += x == other_x
            tied_y += y == other_y
    total = len(pairs) * (len(pairs) - 1) / 2
    norm = ((total - tied_x) * (total - tied_y)) ** 0.5
    return (concordant - discordant) / norm if norm else None


@given(st.lists(st.tuples(*[st.integers(0, 20)] * 3), max_size=30))
def test_quality_is_what_counting_by_hand_gives(rows):
    quality = RecentQuality()
    for row in rows:
        quality.learn_one(*row)
    n = len(rows)
    assert quality.mae() == (pytest.approx(sum(abs(p - a) for p, _, a in rows) / n) if n else None)
    assert quality.p90_coverage() == (pytest.approx(sum(a <= p90 for _, p90, a in rows) / n) if n else None)
    assert quality.kendall_tau() == pytest.approx(tau_b([(p, a) for p, _, a in rows]))
