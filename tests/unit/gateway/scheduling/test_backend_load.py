from dataclasses import replace

import pytest

from gateway.scheduling.messages import Prefix, WaitReason
from gateway.scheduling.scrape_estimates import TARGET
from tests.unit.gateway.scheduling.backend_loads import admit, has_room, load_of, reason, request, scrape

# Which requests a backend may take


def test_healthy_backend_takes_only_requests_of_its_models():
    assert reason(load_of()) is None
    assert reason(load_of(), replace(request(), model="mistral")) is WaitReason.OTHER_MODEL
    assert reason(load_of(healthy=False)) is WaitReason.UNHEALTHY


def test_full_backend_takes_no_request_until_its_next_trial():
    load = load_of()
    load.full_until_s = 5.0
    assert (reason(load, now=4.9), reason(load, now=5.0)) == (WaitReason.FULL, None)


def test_max_concurrency_of_the_operator_is_not_exceeded():
    load = load_of(request("a"), max_concurrency=2)
    assert reason(load) is None
    admit(load, request("b"))
    assert reason(load) is WaitReason.MAX_NUM_SEQS


def test_learned_max_num_seqs_is_not_exceeded():
    load = load_of(request("a"), request("b"))
    for _ in range(2):
        scrape(load, kv_used_tokens=200, running=2, waiting=1)
    assert reason(load) is WaitReason.MAX_NUM_SEQS
    load.release(request("a"), None, 1.0)
    assert reason(load) is None


def test_engine_with_a_max_num_seqs_estimate_of_zero_still_gets_one_request():
    load = load_of()
    for _ in range(3):
        scrape(load, kv_used_tokens=200, running=0, waiting=1)
    assert reason(load) is None


def test_static_engine_takes_one_batch_at_a_time():
    load = load_of(static=True)
    assert reason(load) is None
    admit(load, request("a"))
    assert reason(load) is WaitReason.BATCH


# Memory


def test_backend_without_running_requests_of_ours_takes_any_request():
    assert has_room(load_of(kv_used_tokens=990), request(prompt=5000))


def test_backend_of_unknown_memory_takes_requests():
    assert has_room(load_of(request("a"), kv_capacity_tokens=None), request("b", prompt=5000))


def test_room_is_the_part_of_the_target_that_is_not_planned():
    load = load_of(request("a", prompt=490))
    fitting = round(TARGET * 1000) - 500 - 10
    assert has_room(load, request("b", prompt=fitting))
    assert not has_room(load, request("b", prompt=fitting + 1))


def test_prompt_over_the_context_length_takes_no_memory():
    assert not has_room(load_of(request("a", prompt=900), max_model_len=950), request("b", prompt=949))
    assert has_room(load_of(request("a", prompt=900), max_model_len=950), request("c", prompt=950))


def test_request_as_large_as_a_rejected_one_is_rejected_without_a_test_until_memory_is_freed():
    load = load_of(request("a", prompt=600))
    assert not has_room(load, request("b", prompt=500))
    assert reason(load, request("b", prompt=500)) is WaitReason.MEMORY
    assert reason(load, request("b", prompt=499)) is None
    load.release(request("a", prompt=600), None, 1.0)
    assert reason(load, request("b", prompt=500)) is None
    admit(load, request("c", prompt=600))
    assert not has_room(load, request("b", prompt=500))
    scrape(load)
    assert reason(load, request("b", prompt=500)) is None


def test_larger_rejected_request_does_not_raise_the_size_that_is_rejected_without_a_test():
    load = load_of(request("a", prompt=600))
    assert not has_room(load, request("b", prompt=500))
    assert not has_room(load, request("c", prompt=700))
    assert reason(load, request("b", prompt=500)) is WaitReason.MEMORY


def test_engine_that_preempts_gets_less_work():
    load = load_of(request("a"))
    scrape(load, 0.0, kv_used_tokens=100, preemptions=0)
    before = load.budget_tokens
    scrape(load, 1.0, kv_used_tokens=101, preemptions=50)
    assert load.budget_tokens < before - 10


# Growth and speed


def test_answers_without_reported_progress_grow_with_time():
    one, three = load_of(request("a", output=5000)), load_of(request("a", output=5000, sequences=3))
    for load in (one, three):
        scrape(load, 10.0)
    assert one.ledger.output_tokens("a") > 100
    assert three.ledger.output_tokens("a") == 3 * one.ledger.output_tokens("a")


def test_answer_without_reported_progress_does_not_outgrow_its_limit():
    load = load_of(request("a", output=20, sequences=2))
    scrape(load, 1000.0)
    assert load.ledger.output_tokens("a") == 40


def test_answer_with_reported_progress_grows_by_it():
    load = load_of(request("a", output=5000))
    load.grow(request("a", output=5000), 1, 0.1)
    scrape(load, 10.0)
    assert load.ledger.output_tokens("a") == 1


def test_step_times_are_learned_from_progress():
    fast, slow = load_of(request("a", output=500)), load_of(request("a", output=500))
    for load, step_s in ((fast, 0.01), (slow, 0.1)):
        for tokens in range(1, 200, 16):
            load.grow(request("a", output=500), tokens, step_s * tokens)
    probe = request("new", output=100)
    assert fast.completion_s(probe, 100) == pytest.approx(1.0, rel=0.2)
    assert slow.completion_s(probe, 100) == pytest.approx(10.0, rel=0.2)


def test_parallel_sequences_do_not_make_an_engine_look_faster():
    one, four = load_of(request("a", output=500)), load_of(request("a", output=500, sequences=4))
    for load, sequences in ((one, 1), (four, 4)):
        for tokens in range(1, 200, 16):
            load.grow(request("a", output=500, sequences=sequences), tokens * sequences, 0.05 * tokens)
    probe = request("new", output=100)
    assert four.completion_s(probe, 100) == pytest.approx(one.completion_s(probe, 100), rel=0.2)


def test_busier_engine_takes_longer():
    busy = load_of(*(request(str(i)) for i in range(50)))
    assert busy.completion_s(request("new"), 100) > load_of().completion_s(request("new"), 100)


def test_prompt_with_a_cached_prefix_finishes_earlier():
    prefixes = (Prefix(7, 4000),)
    load = load_of(request("a", prefixes=prefixes))
    long = request("new", prompt=4100)
    assert load.completion_s(replace(long, prefixes=prefixes), 10) < load.completion_s(long, 10)


def test_step_times_are_learned_from_batches_of_a_static_engine():
    load = load_of(static=True)
    members = [request("a"), request("b", sequences=2)]
    before = load.completion_s(request("c"), 100)
    for number in range(6):
        for each in members:
            admit(load, each, 100.0 * number)
        load.batches.begin(members, 100.0 * number)
        load.release(members[0], 40, 100.0 * number + 30.0)
        load.release(members[1], 200, 100.0 * number + 30.0)
    assert load.batches.time(3, 100, 100) == pytest.approx(30.0, rel=0.2)
    assert load.completion_s(request("c"), 100) > before


def test_progress_of_a_released_request_is_ignored():
    load = load_of(request("a"))
    load.release(request("a"), None, 1.0)
    load.release(request("a"), None, 2.0)
    scrape(load, 10.0)
    assert len(load.ledger) == 0


# Engines that do not report their memory


def load_that_keeps_some_waiting(*, kv_capacity_tokens=None):
    """Late first tokens of three of ten requests, each after the end of another; seven are left."""
    names = "abcdefghij"
    load = load_of(*map(request, names[:6]), kv_capacity_tokens=kv_capacity_tokens)
    for name in names[:6]:
        load.grow(request(name), 1, 0.1)
    for late, ended, sent_s in zip(names[6:9], names[:3], (1.0, 3.0, 5.0), strict=True):
        admit(load, request(late), sent_s)
        for tenth in range(1, 20):
            load.grow(request("f"), 1 + tenth % 3, sent_s + tenth / 10)
        load.release(request(ended), 1, sent_s + 1.95)
        load.grow(request(late), 1, sent_s + 1.96)
    admit(load, request("j"), 7.0)
    return load


def test_capacity_is_learned_from_late_first_tokens():
    load = load_that_keeps_some_waiting()
    assert load.capacity_tokens == pytest.approx(600, rel=0.05)
    assert not has_room(load, request("new"))
    for each in "defghij":
        load.release(request(each), 1, 8.0)
    assert has_room(load, request("new", prompt=5000))


def test_reported_capacity_overrides_the_learned_one():
    load = load_that_keeps_some_waiting(kv_capacity_tokens=5000)
    assert load.capacity_tokens == 5000
    assert has_room(load, request("new", prompt=2000))


def test_learned_limit_is_raised_for_a_trial_when_it_binds():
    load = load_that_keeps_some_waiting()
    learned = load.capacity_tokens
    scrape(load, 9.0)
    scrape(load, 10.0)
    assert load.capacity_tokens == learned
    assert not has_room(load, request("new"))
    scrape(load, 11.0)
    assert load.capacity_tokens > learned
