"""Predictions from history are distributions within their bounds, and a restart does not change them."""

from itertools import pairwise
from math import isfinite, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.prediction.answer_memory import EDGES, MAX_TOKENS, AnswerMemory, PastAnswer, bin_of
from gateway.prediction.prediction_input import HistoryKey
from gateway.prediction.predictor import RecentQuality

keys = st.builds(
    HistoryKey,
    app=st.sampled_from(["mail", "chat"]),
    model=st.sampled_from(["llama", "mistral"]),
    user=st.sampled_from([None, "ann", "bob"]),
    template=st.sampled_from([None, "0123"]),
)
answers = st.lists(
    st.builds(
        PastAnswer,
        key=keys,
        tokens=st.integers(0, 10**6),
        sequences=st.integers(1, 2000),
        size=st.one_of(st.just(nan), st.floats(0, 15)),
        prompt_bytes=st.integers(0, 10**6),
        input_tokens=st.one_of(st.none(), st.integers(1, 10**5)),
        cut=st.booleans(),
    ),
    max_size=12,
)
levels = (0.1, 0.3, 0.5, 0.8, 0.95, 0.99)


def memory_of(past):
    memory = AnswerMemory()
    for answer in past:
        memory.learn_one(answer)
    return memory


def quantiles(memory, key, cap=None):
    length = memory.predict_one(key, cap).length
    return [length.quantile(level) for level in levels]


@given(st.integers(1, MAX_TOKENS))
def test_length_is_within_the_edges_of_its_bin(tokens):
    index = bin_of(tokens)
    assert EDGES[index] <= tokens < EDGES[index + 1]


@given(answers, keys, st.one_of(st.none(), st.integers(1, 10**5)))
def test_quantiles_rise_with_their_level_and_stay_within_the_cap(past, key, cap):
    values = quantiles(memory_of(past), key, cap)
    assert all(lower <= higher for lower, higher in pairwise(values))
    assert values[0] >= 1 - 1e-9
    assert cap is None or values[-1] <= cap


@given(answers, keys, st.floats(0, 15))
def test_anchor_is_finite_and_every_feature_is_a_number_or_unknown(past, key, size):
    values, anchor = memory_of(past).features_one(key, size)
    assert isfinite(anchor)
    assert all(isfinite(value) or value != value for value in values)


def tau_b(pairs):
    """Kendall's tau-b, computed pair by pair."""
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
def test_quality_equals_the_count_by_hand(rows):
    quality = RecentQuality()
    for row in rows:
        quality.learn_one(*row)
    n = len(rows)
    assert quality.mae() == (pytest.approx(sum(abs(p - a) for p, _, a in rows) / n) if n else None)
    assert quality.p90_coverage() == (pytest.approx(sum(a <= p90 for _, p90, a in rows) / n) if n else None)
    assert quality.kendall_tau() == pytest.approx(tau_b([(p, a) for p, _, a in rows]))
