import pytest

from gateway.scheduling.batch_time import KnnBatchTime, StepSumTime
from gateway.scheduling.step_time import StepTimePrior


def fifty_ms_a_token(size, prompt_tokens, output_tokens):
    return 0.05 * output_tokens


def test_prior_predicts_before_the_first_batch():
    assert KnnBatchTime(fifty_ms_a_token)(7, 100, 200) == pytest.approx(10.0)


def test_prediction_follows_similar_batches_only():
    estimate = KnnBatchTime(fifty_ms_a_token)
    for _ in range(5):
        estimate.learn_one(8, 100, 200, 20.0)
        estimate.learn_one(100, 50, 100, 10.0)
    assert estimate(8, 100, 210) == pytest.approx(21.0, rel=0.05)
    assert estimate(1, 900, 4) == pytest.approx(0.2, rel=0.4)


@pytest.mark.parametrize("seconds", [10.0, 11.9, 8.1])
def test_batches_that_took_about_the_expected_time_are_not_learned(seconds):
    estimate = KnnBatchTime(fifty_ms_a_token)
    estimate.learn_one(8, 100, 200, seconds)
    assert len(estimate) == 0


def test_large_relative_error_of_a_short_batch_is_not_learned():
    estimate = KnnBatchTime(fifty_ms_a_token)
    estimate.learn_one(8, 100, 20, 2.9)
    assert len(estimate) == 0
    estimate.learn_one(8, 100, 20, 3.1)
    assert len(estimate) == 1


def test_oldest_batches_are_dropped():
    estimate = KnnBatchTime(fifty_ms_a_token, capacity=8)
    for _ in range(8):
        estimate.learn_one(8, 100, 200, 40.0)
    for _ in range(40):
        estimate.learn_one(8, 100, 200, 4.0)
    assert len(estimate) == 8
    assert estimate(8, 100, 200) == pytest.approx(4.0, rel=0.25)


def test_engine_of_a_different_speed_is_learned():
    real = StepSumTime(StepTimePrior(base_s=0.1, per_sequence_s=1e-3, per_kv_token_s=1e-6, per_prompt_token_s=1e-4))
    estimate = KnnBatchTime(StepSumTime(StepTimePrior(base_s=0.03)))
    shapes = [(size, prompt, output) for size in (2, 7, 30) for prompt in (30, 200) for output in (50, 150, 400)]
    before = max(abs(estimate(*shape) / real(*shape) - 1.0) for shape in shapes)
    for _ in range(20):
        for shape in shapes:
            estimate.learn_one(*shape, real(*shape))
    assert before > 0.5
    assert max(abs(estimate(*shape) - real(*shape)) / max(10.0, real(*shape)) for shape in shapes) < 0.25
