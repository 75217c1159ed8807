from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.messages import BackendState
from gateway.scheduling.target import MOST, START, KvTarget

STATE = BackendState(
    "gpu-0", frozenset({"llama"}), healthy=True, kv_capacity_tokens=1000, kv_used_tokens=400, waiting=0, preemptions=0
)


def look(target, *, held_back=True, **seen):
    if held_back:
        target.note_held_back()
    target.see(replace(STATE, **seen))
    return target.share


def risen(looks=20):
    target = KvTarget()
    for _ in range(looks):
        look(target)
    return target


def test_it_rises_while_requests_are_held_back_from_an_engine_with_room():
    assert risen().share > START + 0.1


def test_nobody_held_back_is_no_reason_to_rise():
    target = KvTarget()
    assert [look(target, held_back=False) for _ in range(20)] == [START] * 20


def test_an_engine_that_queues_fills_or_has_no_room_is_not_given_more():
    for seen in ({"waiting": 3}, {"kv_used_tokens": 950}):
        target = KvTarget()
        assert [look(target, **seen) for _ in range(20)] == [START] * 20
    target = KvTarget()
    assert [look(target, kv_used_tokens=100 + i) for i in range(20)] == [START] * 20


def test_a_preemption_takes_it_down_and_it_stays_under_where_that_was():
    target = risen()
    high = target.share
    assert look(target, preemptions=1) < 0.9 * high
    for _ in range(50):
        look(target, preemptions=1)
    assert START * 0.9 <= target.share < high


def test_an_engine_that_tells_nothing_leaves_it_where_it_starts():
    for unknown in ({"preemptions": None}, {"kv_used_tokens": None}, {"kv_capacity_tokens": None}):
        target = KvTarget()
        assert [look(target, **unknown) for _ in range(20)] == [START] * 20


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1000), st.integers(0, 2), st.integers(0, 5)), max_size=200))
def test_it_stays_within_its_bounds_whatever_is_seen(looks):
    target, preemptions = KvTarget(), 0
    for held_back, used, waiting, more in looks:
        preemptions += more
        look(target, held_back=held_back, kv_used_tokens=used, waiting=waiting, preemptions=preemptions)
        assert 0.8 <= target.share <= MOST
