"""For any observations: times stay positive and grow with the load, and their unit does not matter."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import nnls

from gateway.scheduling.least_squares import LEAST, RecursiveLeastSquares
from gateway.scheduling.step_time import StepTimeModel, StepTimePrior

times = st.floats(1e-5, 1e3)
runnings = st.floats(0, 2000)
kv_tokens = st.floats(0, 5e6)
decodes = st.tuples(st.just("decode"), times, runnings, kv_tokens)
first_tokens = st.tuples(st.just("first"), times, st.integers(1, 100_000), runnings, kv_tokens)
observations = st.lists(st.one_of(decodes, first_tokens), max_size=60)
parts = st.one_of(st.just(0.0), st.floats(1e-9, 1.0))
priors = st.builds(StepTimePrior, st.floats(1e-5, 1.0), parts, parts, parts)


def taught(prior, observations, *, unit=1.0):
    model = StepTimeModel(prior)
    for kind, seconds, *load in observations:
        note = model.learn_decode if kind == "decode" else model.learn_first_token
        note(seconds * unit, *load)
    return model


@given(priors, observations, runnings, runnings, kv_tokens, kv_tokens)
def test_times_are_positive_and_grow_with_the_load(prior, observations, running, more_running, kv, more_kv):
    model = taught(prior, observations)
    least = model.tpot_s(0, 0)
    at_load = model.tpot_s(running, kv)
    assert 0 < least <= at_load < float("inf")
    assert at_load <= model.tpot_s(running + more_running, kv) <= model.tpot_s(running + more_running, kv + more_kv)
    assert 0 <= model.prefill_s(100) <= model.prefill_s(1000) < float("inf")


@given(priors, st.lists(decodes, min_size=1, max_size=60), st.sampled_from([0.125, 8.0]), runnings, kv_tokens)
def test_prediction_scales_with_the_speed_of_the_engine(prior, observations, unit, running, kv):
    assume(all(1e-5 < seconds * unit < 1e3 for _, seconds, *_ in observations))
    model, slower = taught(prior, observations), taught(prior, observations, unit=unit)
    assert slower.tpot_s(running, kv) == pytest.approx(unit * model.tpot_s(running, kv), rel=1e-6)


@given(priors, st.tuples(times, runnings, kv_tokens), st.integers(1, 100))
def test_constant_observation_is_predicted(prior, gap, times_seen):
    model = StepTimeModel(prior)
    for _ in range(times_seen):
        model.learn_decode(*gap)
    assert model.observations == times_seen
    assert model.tpot_s(*gap[1:]) == pytest.approx(gap[0], rel=1e-6)


shares = st.floats(0.0, 1.0)
rows = st.tuples(st.floats(0.01, 1.0), shares, shares, st.floats(0.01, 20.0), st.floats(0.01, 1.0))


@given(st.lists(rows, min_size=1, max_size=25))
def test_coefficients_are_those_of_least_squares_over_all_rows(rows):
    memory, ridge = 50.0, 0.1
    fit = RecursiveLeastSquares(memory=memory, ridge=ridge)
    for x, y, z, target, weight in rows:
        least = LEAST / 3 * sum(fit.coefficients)
        fit.learn(x, y, z, target=target, weight=weight)

    weights = np.array([weight for *_, weight in rows])
    faded = weights * [np.prod(1 - weights[i + 1 :] / memory) for i in range(len(rows))]
    pull = np.sqrt(ridge) * (np.eye(3) - 1 / 3)
    left = np.vstack([np.sqrt(faded)[:, None] * [row[:3] for row in rows], pull])
    right = np.concatenate([np.sqrt(faded) * [row[3] for row in rows], np.zeros(3)])
    best, residual = nnls(left, right - left @ np.full(3, least))
    assert np.linalg.norm(left @ fit.coefficients - right) <= residual * (1 + 1e-6) + 1e-6
    assert min(fit.coefficients) >= least * (1 - 1e-9)
    assert best.shape == (3,)
