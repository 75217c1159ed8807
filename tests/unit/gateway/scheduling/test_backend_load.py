from dataclasses import replace

import pytest

from gateway.scheduling.messages import Prefix, WaitReason
from gateway.scheduling.scrape_estimates import TARGET
from tests.unit.gateway.scheduling.backend_loads import admit, has_room, load_of, reason, request, scrape

# Who may come at all


def test_a_healthy_backend_takes_requests_of_its_models_only():
    assert reason(load_of()) is None
    assert reason(load_of(), replace(request(), model="mistral")) is WaitReason.OTHER_MODEL
    assert reason(load_of(healthy=False)) is WaitReason.UNHEALTHY


def test_a_full_backend_takes_nothing_until_its_trial():
    load = load_of()
    load.full_until_s = 5.0
    assert (reason(load, now=4.9), reason(load, now=5.0)) == (WaitReason.FULL, None)


def test_no_more_are_taken_than_the_operator_allows():
    load = load_of(request("a"), max_concurrency=2)
    assert reason(load) is None
    admit(load, request("b"))
    assert reason(load) is WaitReason.MAX_NUM_SEQS


def test_no_more_are_taken_than_the_engine_has_seats_for():
    load = load_of(request("a"), request("b"))
    for _ in range(2):
        scrape(load, kv_used_tokens=200, running=2, waiting=1)
    assert reason(load) is WaitReason.MAX_NUM_SEQS
    load.release(request("a"), None, 1.0)
    assert reason(load) is None


def test_an_engine_that_seems_to_have_no_seat_at_all_still_gets_one_request():
    load = load_of()
    for _ in range(3):
        scrape(load, kv_used_tokens=200, running=0, waiting=1)
    assert reason(load) is None


def test_a_static_engine_takes_one_batch_at_a_time():
    load = load_of(static=True)
    assert reason(load) is None
    admit(load, request("a"))
    assert reason(load) is WaitReason.BATCH


# Memory


def test_a_backend_that_runs_nothing_of_ours_has_room_for_anything():
    assert has_room(load_of(kv_used_tokens=990), request(prompt=5000))


def test_a_backend_of_unknown_memory_has_room():
    assert has_room(load_of(request("a"), kv_capacity_tokens=None), request("b", prompt=5000))


def test_room_is_what_the_target_leaves():
    load = load_of(request("a", prompt=490))
    fitting = round(TARGET * 1000) - 500 - 10
    assert has_room(load, request("b", prompt=fitting))
    assert not has_room(load, request("b", prompt=fitting + 1))


def test_a_prompt_over_the_context_is_refused_there_and_needs_no_room():
    assert not has_room(load_of(request("a", prompt=900), max_model_len=950), request("b", prompt=949))
    assert has_room(load_of(request("a", prompt=900), max_model_len=950), request("c", prompt=950))


def test_a_request_as_large_as_a_rejected_one_is_rejected_without_a_test_until_memory_is_freed():
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


def test_a_larger_rejected_request_does_not_raise_the_size_that_is_rejected_without_a_test():
    load = load_of(request("a", prompt=600))
    assert not has_room(load, request("b", prompt=500))
    assert not has_room(load, request("c", prompt=700))
    assert reason(load, request("b", prompt=500)) is WaitReason.MEMORY


def test_an_engine_that_preempts_is_filled_less():
    load = load_of(request("a"))
    scrape(load, 0.0, kv_used_tokens=100, preemptions=0)
    before = load.budget_tokens
    scrape(load, 1.0, kv_used_tokens=101, preemptions=50)
    assert load.budget_tokens < before - 10


# Growth and speed


def test_answers_that_nobody_hears_of_grow_by_the_clock():
    one, three = load_of(request("a", output=5000)), load_of(request("a", output=5000, sequences=3))
    for load in (one, three):
        scrape(load, 10.0)
    assert one.ledger.output_tokens("a") > 100
    assert three.ledger.output_tokens("a") == 3 * one.ledger.output_tokens("a")


def test_an_answer_that_nobody_hears_of_does_not_outgrow_its_limit():
    load = load_of(request("a", output=20, sequences=2))
    scrape(load, 1000.0)
    assert load.ledger.output_tokens("a") == 40


def test_an_answer_that_is_heard_of_grows_by_what_is_heard():
    load = load_of(request("a", output=5000))
    load.grow(request("a", output=5000), 1, 0.1)
    scrape(load, 10.0)
    assert load.ledger.output_tokens("a") == 1


def test_the_speed_of_an_engine_shows_in_its_answers():
    fast, slow = load_of(request("a", output=500)), load_of(request("a", output=500))
    for load, step_s in ((fast, 0.01), (slow, 0.1)):
        for tokens in range(1, 200, 16):
            load.grow(request("a", output=500), tokens, step_s * tokens)
    probe = request("new", output=100)
    assert fast.completion_s(probe, 100) == pytest.approx(1.0, rel=0.2)
    assert slow.completion_s(probe, 100) == pytest.approx(10.0, rel=0.2)


def test_several_sequences_at_once_are_no_faster_an_engine():
    one, four = load_of(request("a", output=500)), load_of(request("a", output=500, sequences=4))
    for load, sequences in ((one, 1), (four, 4)):
        for tokens in range(1, 200, 16):
            load.grow(request("a", output=500, sequences=sequences), tokens * sequences, 0.05 * tokens)
    probe = request("new", output=100)
    assert four.completion_s(probe, 100) == pytest.approx(one.completion_s(probe, 100), rel=0.2)


def test_a_busier_engine_takes_longer():
    busy = load_of(*(request(str(i)) for i in range(50)))
    assert busy.completion_s(request("new"), 100) > load_of().completion_s(request("new"), 100)


def test_a_prompt_whose_beginning_is_cached_there_is_done_earlier():
    prefixes = (Prefix(7, 4000),)
    load = load_of(request("a", prefixes=prefixes))
    long = request("new", prompt=4100)
    assert load.completion_s(replace(long, prefixes=prefixes), 10) < load.completion_s(long, 10)


def test_a_static_engine_s_batches_are_learned_from():
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


def test_what_is_released_is_heard_of_no_more():
    load = load_of(request("a"))
    load.release(request("a"), None, 1.0)
    load.release(request("a"), None, 2.0)
    scrape(load, 10.0)
    assert len(load.ledger) == 0


# Memory that nobody tells of


def load_that_keeps_some_waiting(*, kv_capacity_tokens=None):
    """Of ten requests three get their first tokens late, each after another's end; seven are left."""
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


def test_a_backend_that_keeps_requests_waiting_has_what_fitted_then():
    load = load_that_keeps_some_waiting()
    assert load.capacity_tokens == pytest.approx(600, rel=0.05)
    assert not has_room(load, request("new"))
    for each in "defghij":
        load.release(request(each), 1, 8.0)
    assert has_room(load, request("new", prompt=5000))


def test_a_backend_that_tells_its_memory_is_believed():
    load = load_that_keeps_some_waiting(kv_capacity_tokens=5000)
    assert load.capacity_tokens == 5000
    assert has_room(load, request("new", prompt=2000))


def test_a_limit_that_was_learned_is_tried_where_it_binds():
    load = load_that_keeps_some_waiting()
    learned = load.capacity_tokens
    scrape(load, 9.0)
    scrape(load, 10.0)
    assert load.capacity_tokens == learned
    assert not has_room(load, request("new"))
    scrape(load, 11.0)
    assert load.capacity_tokens > learned
