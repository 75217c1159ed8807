import pytest

from backends.simulator.engine import Sequence, SequenceTooLongError, StaticEngine, StepTime
from tests.unit.backends.simulator.sequences import run_to_end

STEP_TIME = StepTime(a=1.0, b=0.1, c=0.001, d=0.01)


def engine(*, capacity=10_000, max_batch_size=7):
    return StaticEngine(STEP_TIME, capacity, max_batch_size=max_batch_size)


def sequence(id, prompt=10, output=3, **fields):
    return Sequence(id=id, prompt_tokens=prompt, output_tokens=output, max_new_tokens=1000, **fields)


def test_batch_ends_together_with_its_longest_answer():
    subject = engine()
    subject.submit(sequence("short", output=1))
    subject.submit(sequence("long", output=4))

    results = run_to_end(subject)

    assert [list(result.finished) for result in results] == [[], [], [], ["short", "long"]]
    assert not any(result.emitted for result in results)


def test_batch_takes_the_time_of_its_longest_prompt_and_answer():
    subject = engine()
    subject.submit(sequence("a", prompt=10, output=1))
    subject.submit(sequence("b", prompt=50, output=2))

    prefill, decode = subject.step(), subject.step()

    assert prefill.duration_s == pytest.approx(1.0 + 0.1 * 2 + 0.001 * 2 * 51 + 0.01 * 2 * 50)
    assert decode.duration_s == pytest.approx(1.0 + 0.1 * 2 + 0.001 * 2 * 52)


def test_next_batch_is_taken_in_order_of_arrival():
    subject = engine(max_batch_size=2)
    for id in "abc":
        subject.submit(sequence(id, output=1))

    assert [list(result.finished) for result in run_to_end(subject)] == [["a", "b"], ["c"]]


def test_batch_is_limited_by_the_memory_of_its_padded_prompts():
    subject = engine(capacity=100)
    subject.submit(sequence("a", prompt=10, output=1))
    subject.submit(sequence("b", prompt=40, output=1))
    subject.submit(sequence("c", prompt=10, output=1))

    assert [list(result.finished) for result in run_to_end(subject)] == [["a", "b"], ["c"]]


def test_sequences_of_different_batches_are_not_mixed():
    subject = engine()
    subject.submit(sequence("alone", output=1))
    subject.submit(sequence("x", output=1, batch=1))
    subject.submit(sequence("y", output=1, batch=1))
    subject.submit(sequence("z", output=1, batch=2))

    assert [list(result.finished) for result in run_to_end(subject)] == [["alone"], ["x", "y"], ["z"]]


def test_batch_that_exceeds_the_memory_fails_as_a_whole():
    subject = engine(capacity=100)
    subject.submit(sequence("a", prompt=40, output=5))
    subject.submit(sequence("b", prompt=40, output=20))
    subject.submit(sequence("c", prompt=90, output=1))

    results = run_to_end(subject)

    assert [id for result in results for id in result.failed] == ["a", "b"]
    assert [id for result in results for id in result.finished] == ["c"]
    assert subject.kv_used_tokens == 0


def test_memory_is_the_padded_batch():
    subject = engine()
    subject.submit(sequence("a", prompt=10))
    subject.submit(sequence("b", prompt=50))

    subject.step()

    assert subject.kv_used_tokens == 2 * 51


def test_abort_shrinks_the_batch():
    subject = engine()
    subject.submit(sequence("a", output=2))
    subject.submit(sequence("b", output=100))
    subject.step()

    assert subject.abort("b")
    assert list(subject.step().finished) == ["a"]


def test_abort_removes_a_waiting_sequence():
    subject = engine()
    subject.submit(sequence("a"))

    assert subject.abort("a")
    assert not subject.abort("a")
    assert subject.step().duration_s == 0.0


def test_sequence_larger_than_the_memory_is_refused():
    with pytest.raises(SequenceTooLongError):
        engine(capacity=100).submit(sequence("a", prompt=100, output=1))
