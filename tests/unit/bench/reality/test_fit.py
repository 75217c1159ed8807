import random

import pytest

from backends.simulator.engine import StepTime
from bench.reality.fit import FitError, Sample, errors, fit_step_time

TRUTH = StepTime(a=0.01, b=2e-4, c=1e-6, d=4e-5)


def samples(count, *, truth=TRUTH, noise=0.0, seed=0):
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        steps = chance.randint(1, 20)
        running, kv_tokens = steps * chance.randint(1, 60), steps * chance.randint(100, 5000)
        work = Sample(steps, running, kv_tokens, chance.choice([0, 0, 200]), 1.0)
        seconds = work.predicted_s(truth) * (1.0 + noise * chance.expovariate(1.0))
        made.append(Sample(work.steps, work.running, work.kv_tokens, work.prefill_tokens, seconds))
    return made


def test_exact_samples_give_the_constants_back():
    fitted = fit_step_time(samples(30))
    assert (fitted.a, fitted.b, fitted.c, fitted.d) == pytest.approx((0.01, 2e-4, 1e-6, 4e-5), rel=1e-6)


def test_hiccups_count_at_their_full_length():
    noisy = samples(2000, noise=0.5)  # half as long again in the mean, and never shorter
    fitted = fit_step_time(noisy)
    total = sum(sample.predicted_s(fitted) for sample in noisy) / sum(sample.seconds for sample in noisy)
    assert total == pytest.approx(1.0, abs=0.02)
    assert fitted.a == pytest.approx(1.5 * TRUTH.a, rel=0.15)


def test_no_constant_is_negative():
    falling = [Sample(1, n, 100 * n, 0, 0.05 - 0.001 * n) for n in range(1, 30)]
    fitted = fit_step_time(falling)
    assert min(fitted.a, fitted.b, fitted.c, fitted.d) >= 0.0


def test_constant_input_gets_no_coefficient():
    fitted = fit_step_time([Sample(1, n, 0, 0, 0.01 + 0.001 * n) for n in range(1, 9)])
    assert (fitted.a, fitted.b) == pytest.approx((0.01, 0.001))
    assert (fitted.c, fitted.d) == (0.0, 0.0)


def test_errors_are_relative_to_the_measurement():
    (off,) = errors([Sample(1, 0, 0, 0, 0.02)], StepTime(0.01, 0.0, 0.0, 0.0))
    assert off == pytest.approx(-0.5)


def test_too_few_samples_are_refused():
    with pytest.raises(FitError, match="3 samples for 4"):
        fit_step_time(samples(3))


def test_a_sample_without_time_is_refused():
    with pytest.raises(FitError, match="no time"):
        fit_step_time([*samples(5), Sample(1, 1, 1, 0, 0.0)])
