import pytest

from backends.simulator.engine import ContinuousEngine, FcfsQueue, StepTime
from backends.simulator.engine.prefix_cache import PrefixCachingKV
from tests.unit.backends.simulator.sequences import run_to_end, sequence

STEP_TIME = StepTime(a=1.0, b=0.0, c=0.0, d=0.01)


def engine(*, blocks, **options):
    return ContinuousEngine(STEP_TIME, PrefixCachingKV(blocks + 1, 16), FcfsQueue(), **options)


def prefilled(result):
    return round((result.duration_s - 1.0) / 0.01)


def test_the_whole_input_must_fit_for_admission():
    subject = engine(blocks=10, max_num_batched_tokens=64)
    subject.submit(sequence("a", prompt=60, output=30))
    subject.step()
    subject.submit(sequence("b", prompt=120, output=1))

    subject.step()

    assert (subject.running, subject.waiting) == (1, 1)


def test_there_is_no_watermark():
    subject = engine(blocks=300)
    subject.submit(sequence("a", prompt=100 * 16))
    subject.submit(sequence("b", prompt=200 * 16))

    subject.step()

    assert subject.running == 2


def test_preempted_sequence_computes_only_overwritten_blocks():
    subject = engine(blocks=6)
    subject.submit(sequence("old", prompt=48, output=20))
    subject.submit(sequence("new", prompt=48, output=20))

    results = run_to_end(subject)

    preempted_at = next(index for index, result in enumerate(results) if result.preempted)
    resumed = next(result for result in results[preempted_at:] if "new" in result.emitted)
    assert prefilled(results[0]) == 96
    assert prefilled(resumed) == 49 - 16  # "old" has taken two of its three blocks for 20 more tokens


def test_sequences_do_not_share_blocks():
    subject = engine(blocks=100)
    subject.submit(sequence("a", prompt=48, output=1))
    subject.submit(sequence("b", prompt=48, output=1))

    assert prefilled(subject.step()) == 96


@pytest.mark.parametrize("output", [1, 15, 16, 17, 40])
def test_all_blocks_are_freed(output):
    subject = engine(blocks=8)
    for id in "abc":
        subject.submit(sequence(id, prompt=20, output=output))

    finished = [id for result in run_to_end(subject) for id in result.finished]

    assert sorted(finished) == ["a", "b", "c"]
    assert subject.kv_used_tokens == 0
