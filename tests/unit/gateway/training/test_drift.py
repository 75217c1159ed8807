import random

import pytest

from gateway.training.schedule import MIN_OUTCOMES, DriftDetector


@pytest.fixture
def answers():
    """Returns a function that draws answer lengths around a median of 100 tokens, as spread as real ones."""
    draw = random.Random(7)
    return lambda factor=1.0: 100.0 * factor * draw.lognormvariate(0.0, 0.7)


def test_lengths_that_triple_are_drift_within_200_answers(answers):
    detector = DriftDetector()
    for _ in range(2000):
        detector.learn_one(100.0, answers())
    assert not detector.drifted
    for _ in range(200):
        detector.learn_one(100.0, answers(3.0))
    assert detector.drifted


def test_noise_is_no_drift(answers):
    detector = DriftDetector()
    for _ in range(50_000):
        detector.learn_one(100.0, answers())
    assert not detector.drifted


def test_better_predictions_are_no_drift(answers):
    detector = DriftDetector()
    for number in range(5000):
        detector.learn_one(300.0 if number < 2500 else 100.0, answers())
    assert not detector.drifted


def test_a_few_outcomes_are_no_drift():
    detector = DriftDetector()
    for number in range(MIN_OUTCOMES - 1):
        detector.learn_one(100.0, 100.0 if number < 20 else 1000.0)
    assert not detector.drifted
