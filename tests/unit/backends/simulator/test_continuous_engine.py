import pytest

from backends.simulator.engine import (
    ContinuousEngine,
    FcfsQueue,
    PagedKV,
    PriorityQueue,
    Sequence,
    SequenceTooLongError,
    StepTime,
)
from tests.unit.backends.simulator.sequences import run_to_end, sequence

STEP_TIME = StepTime(a=1.0, b=0.1, c=0.001, d=0.01)


def engine(*, blocks=100, block_size=16, max_num_seqs=256, max_num_batched_tokens=8192, waiting=None):
    return ContinuousEngine(
        STEP_TIME,
        PagedKV(blocks + 1, block_size),
        FcfsQueue() if waiting is None else waiting,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def test_step_without_work_takes_no_time():
    assert engine().step().duration_s == 0.0


def test_prefill_gives_the_first_token_and_each_step_one_more():
    subject = engine()
    subject.submit(sequence("a", output=3))

    results = run_to_end(subject)

    assert [list(result.emitted) for result in results] == [["a"], ["a"], ["a"]]
    assert [list(result.first) for result in results] == [["a"], [], []]
    assert [list(result.finished) for result in results] == [[], [], ["a"]]
    assert subject.kv_used_tokens == 0


def test_step_time_counts_sequences_kv_read_and_prefill():
    subject = engine()
    subject.submit(sequence("a", prompt=100))
    subject.submit(sequence("b", prompt=50))

    prefill, decode = subject.step(), subject.step()

    assert prefill.duration_s == pytest.approx(1.0 + 0.1 * 2 + 0.001 * 150 + 0.01 * 150)
    assert decode.duration_s == pytest.approx(1.0 + 0.1 * 2 + 0.001 * 152)


def test_answer_stops_at_max_new_tokens():
    subject = engine()
    subject.submit(Sequence(id="a", prompt_tokens=1, output_tokens=10, max_new_tokens=2))

    assert len(run_to_end(subject)) == 2


def test_long_prompt_is_prefilled_in_chunks_beside_a_decode():
    subject = engine(max_num_batched_tokens=64)
    subject.submit(sequence("short", prompt=16, output=20))
    subject.step()
    subject.submit(sequence("long", prompt=150, output=2))

    results = [subject.step() for _ in range(3)]

    assert [list(result.emitted) for result in results] == [["short"], ["short"], ["short", "long"]]
    assert results[0].duration_s == pytest.approx(1.0 + 0.1 * 2 + 0.001 * (17 + 63) + 0.01 * 63)


def test_admission_beside_others_leaves_one_percent_of_the_blocks_free():
    subject = engine(blocks=299)  # 300 with block 0: a watermark of 3
    subject.submit(sequence("first", prompt=100 * 16))
    subject.submit(sequence("too large", prompt=197 * 16))

    subject.step()

    assert (subject.running, subject.waiting) == (1, 1)


def test_admission_may_use_all_blocks_above_the_watermark():
    subject = engine(blocks=299)
    subject.submit(sequence("first", prompt=100 * 16))
    subject.submit(sequence("fits", prompt=196 * 16))

    subject.step()

    assert (subject.running, subject.waiting) == (2, 0)


def test_lone_sequence_may_fill_the_memory():
    subject = engine(blocks=200)
    subject.submit(sequence("a", prompt=199 * 16, output=16))

    assert list(run_to_end(subject)[-1].finished) == ["a"]


def test_sequence_larger_than_the_memory_is_refused():
    subject = engine(blocks=10)

    with pytest.raises(SequenceTooLongError):
        subject.submit(sequence("a", prompt=160, output=1))


def test_only_the_first_chunk_needs_to_fit_at_admission():
    subject = engine(blocks=10, max_num_batched_tokens=64)
    subject.submit(sequence("a", prompt=60, output=30))
    subject.step()
    subject.submit(sequence("b", prompt=120, output=1))

    subject.step()

    assert subject.running == 2


def test_max_num_seqs_bounds_the_batch():
    subject = engine(max_num_seqs=2)
    for id in "abc":
        subject.submit(sequence(id))

    subject.step()

    assert (subject.running, subject.waiting) == (2, 1)


def test_newest_sequence_is_preempted_and_recomputes_its_tokens():
    subject = engine(blocks=4)
    subject.submit(sequence("old", prompt=30, output=10))
    subject.submit(sequence("new", prompt=20, output=10))

    results = run_to_end(subject)

    preempted_at = next(index for index, result in enumerate(results) if result.preempted)
    resumed = next(result for result in results[preempted_at:] if "new" in result.emitted)
    emitted = [id for result in results for id in result.emitted]
    assert [id for result in results for id in result.preempted] == ["new"]
    assert [id for result in results for id in result.finished] == ["old", "new"]
    assert subject.preemptions == 1
    assert emitted.count("new") == 10
    assert resumed.duration_s == pytest.approx(
        1.0 + 0.1 + 0.001 * 23 + 0.01 * 23
    )  # its 20 prompt tokens and the 3 that it had generated


def test_preempted_sequence_goes_back_to_the_head_of_the_queue():
    subject = engine(blocks=4, max_num_seqs=2)
    subject.submit(sequence("old", prompt=32, output=4))
    subject.submit(sequence("preempted", prompt=32, output=4))
    subject.submit(sequence("later", prompt=16, output=4))

    subject.step()
    assert subject.step().preempted == ["preempted"]
    finished = [id for result in run_to_end(subject) for id in result.finished]

    assert finished == ["old", "preempted", "later"]


def test_no_sequence_overtakes_the_head_of_the_queue():
    subject = engine(blocks=10)
    subject.submit(sequence("running", prompt=100))
    subject.submit(sequence("large", prompt=100))
    subject.submit(sequence("small", prompt=1))

    subject.step()

    assert (subject.running, subject.waiting) == (1, 2)


def test_priority_admits_the_lowest_value_first_then_arrival():
    subject = engine(max_num_seqs=1, waiting=PriorityQueue())
    subject.submit(sequence("urgent later", priority=-1, arrival_s=2.0))
    subject.submit(sequence("normal", priority=0, arrival_s=0.0))
    subject.submit(sequence("urgent", priority=-1, arrival_s=1.0))

    finished = [id for result in run_to_end(subject) for id in result.finished]

    assert finished == ["urgent", "urgent later", "normal"]


def test_priority_preempts_the_highest_value_though_it_is_older():
    subject = engine(blocks=4, waiting=PriorityQueue())
    subject.submit(sequence("patient", prompt=32, priority=5, arrival_s=0.0))
    subject.step()
    subject.submit(sequence("urgent", prompt=16, output=4, priority=0, arrival_s=1.0))
    subject.step()

    assert subject.step().preempted == ["patient"]
    assert subject.running == 1


def test_preempting_a_scheduled_sequence_returns_its_budget():
    subject = engine(blocks=4, max_num_batched_tokens=32, waiting=PriorityQueue())
    subject.submit(sequence("patient", prompt=30, output=10, priority=5))
    subject.step()
    subject.submit(sequence("urgent", prompt=31, output=3, priority=0))
    subject.step()

    results = run_to_end(subject)

    assert [id for result in results for id in result.preempted] == ["patient"]
    assert [id for result in results for id in result.finished] == ["urgent", "patient"]


def test_abort_frees_the_memory_of_a_running_sequence_at_once():
    subject = engine()
    subject.submit(sequence("a"))
    subject.step()

    assert subject.abort("a")
    assert (subject.running, subject.kv_used_tokens) == (0, 0)


def test_abort_removes_a_waiting_sequence():
    subject = engine(max_num_seqs=1)
    subject.submit(sequence("a"))
    subject.submit(sequence("b"))
    subject.step()

    assert subject.abort("b")
    assert subject.waiting == 0


def test_abort_of_an_unknown_sequence_is_false():
    subject = engine()

    assert not subject.abort("a")
