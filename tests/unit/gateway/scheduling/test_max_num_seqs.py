from dataclasses import replace
from math import inf

from gateway.scheduling.messages import BackendState
from gateway.scheduling.scrape_estimates import MaxNumSeqsEstimate

STATE = BackendState(
    "gpu-0", frozenset({"llama"}), healthy=True, kv_capacity_tokens=1000, kv_used_tokens=300, running=8, waiting=4
)


def seats_after(*looks):
    seats = MaxNumSeqsEstimate()
    for look in looks:
        seats.on_scrape(replace(STATE, **look))
    return seats


def test_an_engine_that_showed_nothing_has_no_bound():
    assert MaxNumSeqsEstimate().limit(None) == inf


def test_a_configured_bound_holds_from_the_start():
    assert MaxNumSeqsEstimate().limit(5) == 5


def test_who_waits_twice_beside_free_memory_and_as_many_running_waits_for_a_seat():
    assert seats_after({}).limit(None) == inf
    assert seats_after({}, {}).limit(None) == 8


def test_the_lower_of_learned_and_configured_holds():
    assert (seats_after({}, {}).limit(5), seats_after({}, {}).limit(50)) == (5, 8)


def test_a_running_count_that_still_changes_is_no_bound():
    assert seats_after({"running": 6}, {"running": 7}, {"running": 8}).limit(None) == inf


def test_who_waits_while_memory_is_full_waits_for_memory():
    full = {"kv_used_tokens": 950}
    assert seats_after(full, full, full).limit(None) == inf


def test_an_engine_that_has_more_seats_than_it_showed_is_given_one_more_at_a_time():
    roomy = {"waiting": 0, "running": 8}
    assert seats_after({}, {}, roomy).limit(None) == 9
    assert seats_after({}, {}, roomy, roomy).limit(None) == 9  # not before it runs as many


def test_looks_that_leave_something_out_teach_nothing():
    for unknown in ("kv_used_tokens", "kv_capacity_tokens", "running", "waiting"):
        assert seats_after(*[{unknown: None}] * 3).limit(None) == inf
