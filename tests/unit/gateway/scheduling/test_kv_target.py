from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.scrape_estimates import MAX_FALL, MIN_TARGET, RECOVERY_S, TARGET, KvTarget


def fallen(share=MIN_TARGET):
    """A target whose last scrape is at second 0, without a preemption so far."""
    target = KvTarget(share)
    target.on_scrape(0, 0.1, 0.0)
    return target


def test_target_without_preemptions_stays():
    target = KvTarget()
    for second in range(100):
        target.on_scrape(0, 0.1, float(second))
    assert target.share == TARGET


def test_preemption_lowers_the_target_by_its_cost():
    target = fallen(TARGET)
    target.on_scrape(2, 0.02, 1.0)
    assert target.share == pytest.approx(TARGET * (1 - 2 * 0.02))


def test_many_preemptions_in_one_scrape_lower_the_target_by_a_bounded_part():
    target = fallen(TARGET)
    target.on_scrape(1000, 1.0, 1.0)
    assert target.share == pytest.approx(TARGET * (1 - MAX_FALL))


def test_target_recovers_with_time_and_not_with_the_number_of_scrapes():
    often, seldom = fallen(), fallen()
    for tenth in range(1, 301):
        often.on_scrape(0, 0.1, tenth / 10)
    seldom.on_scrape(0, 0.1, 30.0)
    expected = TARGET - (TARGET - MIN_TARGET) * exp(-30.0 / RECOVERY_S)
    assert (often.share, seldom.share) == (pytest.approx(expected), pytest.approx(expected))


def test_preemptions_before_the_first_scrape_do_not_count():
    target = KvTarget()
    target.on_scrape(10_000, 1.0, 0.0)
    assert target.share == TARGET


def test_counter_of_a_restarted_engine_counts_from_zero():
    target = KvTarget()
    for second, preemptions in enumerate([500, 500, 0, 0]):
        target.on_scrape(preemptions, 1.0, float(second))
    assert target.share == TARGET


def test_target_stays_for_an_engine_without_a_preemption_metric():
    target = KvTarget()
    for second, preemptions in enumerate([None, None, 7, None, 900]):
        target.on_scrape(preemptions, 1.0, float(second))
    assert target.share == TARGET


def test_second_scrape_at_the_same_time_changes_nothing():
    target = fallen()
    target.on_scrape(5, 0.1, 0.0)
    assert target.share == MIN_TARGET


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 10), st.floats(0, 20)), max_size=100))
def test_target_stays_within_its_bounds(scrapes):
    target, preemptions, now = KvTarget(), 0, 0.0
    for more, redo_s, seconds in scrapes:
        preemptions += more
        now += seconds
        target.on_scrape(preemptions, redo_s, now)
        assert MIN_TARGET <= target.share <= TARGET
