import pytest

from backends.simulator.engine import ContinuousEngine, FcfsQueue, ReservedKV, Sequence, SequenceTooLongError, StepTime


@pytest.fixture
def engine():
    return ContinuousEngine(StepTime(1.0, 0.0, 0.0, 0.0), ReservedKV(1000), FcfsQueue())


def sequence(id, prompt, max_new_tokens, output=3):
    return Sequence(id=id, prompt_tokens=prompt, output_tokens=output, max_new_tokens=max_new_tokens)


def test_prompt_and_max_new_tokens_are_reserved_up_front(engine):
    engine.submit(sequence("a", prompt=100, max_new_tokens=500))

    engine.step()

    assert engine.kv_used_tokens == 600


def test_head_that_does_not_fit_blocks_the_queue(engine):
    engine.submit(sequence("a", prompt=100, max_new_tokens=500))
    engine.submit(sequence("large", prompt=100, max_new_tokens=500))
    engine.submit(sequence("small", prompt=1, max_new_tokens=1))

    engine.step()

    assert (engine.running, engine.waiting) == (1, 2)


def test_reservation_is_freed_at_the_answers_end(engine):
    engine.submit(sequence("a", prompt=100, max_new_tokens=500))
    engine.submit(sequence("b", prompt=100, max_new_tokens=500))

    finished = [id for _ in range(6) for id in engine.step().finished]

    assert finished == ["a", "b"]
    assert (engine.kv_used_tokens, engine.preemptions) == (0, 0)


def test_abort_frees_the_reservation(engine):
    engine.submit(sequence("a", prompt=100, max_new_tokens=500))
    engine.step()

    engine.abort("a")

    assert engine.kv_used_tokens == 0


def test_reservation_larger_than_the_memory_is_refused(engine):
    with pytest.raises(SequenceTooLongError):
        engine.submit(sequence("a", prompt=501, max_new_tokens=500))
