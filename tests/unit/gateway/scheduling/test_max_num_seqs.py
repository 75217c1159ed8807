from dataclasses import replace
from math import inf

from gateway.scheduling.messages import BackendState
from gateway.scheduling.scrape_estimates import MaxNumSeqsEstimate

STATE = BackendState(
    "gpu-0", frozenset({"llama"}), healthy=True, kv_capacity_tokens=1000, kv_used_tokens=300, running=8, waiting=4
)


def seats_after(*scrapes):
    seats = MaxNumSeqsEstimate()
    for scrape in scrapes:
        seats.on_scrape(replace(STATE, **scrape))
    return seats


def test_engine_without_a_sign_has_no_bound():
    assert MaxNumSeqsEstimate().limit(None) == inf


def test_configured_bound_holds_from_the_start():
    assert MaxNumSeqsEstimate().limit(5) == 5


def test_waiting_requests_beside_free_memory_in_two_scrapes_show_the_bound():
    assert seats_after({}).limit(None) == inf
    assert seats_after({}, {}).limit(None) == 8


def test_lower_of_learned_and_configured_bound_holds():
    assert (seats_after({}, {}).limit(5), seats_after({}, {}).limit(50)) == (5, 8)


def test_running_count_that_changes_is_no_bound():
    assert seats_after({"running": 6}, {"running": 7}, {"running": 8}).limit(None) == inf


def test_requests_that_wait_while_memory_is_full_show_no_bound():
    full = {"kv_used_tokens": 950}
    assert seats_after(full, full, full).limit(None) == inf


def test_bound_that_is_too_low_is_raised_one_at_a_time():
    roomy = {"waiting": 0, "running": 8}
    assert seats_after({}, {}, roomy).limit(None) == 9
    assert seats_after({}, {}, roomy, roomy).limit(None) == 9  # not before as many requests run


def test_incomplete_scrapes_teach_nothing():
    for unknown in ("kv_used_tokens", "kv_capacity_tokens", "running", "waiting"):
        assert seats_after(*[{unknown: None}] * 3).limit(None) == inf
