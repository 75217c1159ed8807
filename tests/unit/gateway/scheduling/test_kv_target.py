from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.scrape_estimates import MAX_FALL, MIN_TARGET, RECOVERY_S, TARGET, KvTarget


def fallen(share=MIN_TARGET):
    """A target whose last look is at second 0, with no preemption so far."""
    target = KvTarget(share)
    target.on_scrape(0, 0.1, 0.0)
    return target


def test_an_engine_without_preemptions_is_filled_as_far_as_ever():
    target = KvTarget()
    for second in range(100):
        target.on_scrape(0, 0.1, float(second))
    assert target.share == TARGET


def test_a_preemption_takes_as_much_as_it_cost():
    target = fallen(TARGET)
    target.on_scrape(2, 0.02, 1.0)
    assert target.share == pytest.approx(TARGET * (1 - 2 * 0.02))


def test_a_thousand_preemptions_at_once_take_no_more_than_a_bounded_part():
    target = fallen(TARGET)
    target.on_scrape(1000, 1.0, 1.0)
    assert target.share == pytest.approx(TARGET * (1 - MAX_FALL))


def test_a_fall_is_forgotten_with_time_however_often_it_is_looked_at():
    often, seldom = fallen(), fallen()
    for tenth in range(1, 301):
        often.on_scrape(0, 0.1, tenth / 10)
    seldom.on_scrape(0, 0.1, 30.0)
    expected = TARGET - (TARGET - MIN_TARGET) * exp(-30.0 / RECOVERY_S)
    assert (often.share, seldom.share) == (pytest.approx(expected), pytest.approx(expected))


def test_the_preemptions_before_the_first_look_are_not_ours():
    target = KvTarget()
    target.on_scrape(10_000, 1.0, 0.0)
    assert target.share == TARGET


def test_an_engine_that_starts_anew_counts_from_zero():
    target = KvTarget()
    for second, preemptions in enumerate([500, 500, 0, 0]):
        target.on_scrape(preemptions, 1.0, float(second))
    assert target.share == TARGET


def test_an_engine_that_tells_nothing_leaves_it_where_it_starts():
    target = KvTarget()
    for second, preemptions in enumerate([None, None, 7, None, 900]):
        target.on_scrape(preemptions, 1.0, float(second))
    assert target.share == TARGET


def test_two_looks_at_one_time_are_one():
    target = fallen()
    target.on_scrape(5, 0.1, 0.0)
    assert target.share == MIN_TARGET


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10), st.floats(0, 20)), max_size=100))
def test_it_stays_within_its_bounds_whatever_is_seen(looks):
    target, preemptions, now = KvTarget(), 0, 0.0
    for more, redo_s, seconds in looks:
        preemptions += more
        now += seconds
        target.on_scrape(preemptions, redo_s, now)
        assert MIN_TARGET <= target.share <= TARGET
