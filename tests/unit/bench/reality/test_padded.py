import pytest

from backends.simulator.engine import StepTime
from bench.reality.padded import MeasuredBatch, homogeneous, mixed, throughput
from bench.reality.rows import Row


def rows(*lengths):
    return [Row("app", f"prompt {number}", tokens) for number, tokens in enumerate(lengths)]


def test_the_sample_of_a_batch_is_what_the_simulated_engine_computes():
    batch = MeasuredBatch("mixed", 3, 50, 20, 30, 1.0)
    step_time = StepTime(a=0.01, b=1e-3, c=1e-5, d=1e-4)
    assert batch.simulated_s(step_time) == pytest.approx(batch.sample().predicted_s(step_time))


def test_homogeneous_batches_have_the_least_spread():
    assert [[row.output_tokens for row in batch] for batch in homogeneous(rows(9, 1, 8, 2), 2)] == [[1, 2], [8, 9]]


def test_mixed_batches_keep_every_row():
    given = rows(*range(1, 8))
    batches = mixed(given, 3, seed=1)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert sorted(row.output_tokens for batch in batches for row in batch) == list(range(1, 8))


def test_only_requested_tokens_count_as_throughput():
    batches = [MeasuredBatch("mixed", 2, 10, 100, 101, 1.0), MeasuredBatch("mixed", 2, 10, 100, 99, 3.0)]
    assert throughput(batches) == 50.0
    assert throughput(batches, StepTime(a=0.01, b=0.0, c=0.0, d=0.0)) == pytest.approx(100.0)
