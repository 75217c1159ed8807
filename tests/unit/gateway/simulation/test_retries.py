import pytest

from gateway.prediction.history import Caller
from gateway.simulation.retries import retry_truth
from gateway.simulation.run import Outcome, RequestTrace
from gateway.simulation.workload import Arrival


def flight(arrival_s, **times):
    return RequestTrace(Arrival("x", Caller("app", "model"), arrival_s, 10, 10), **times)


def outcome(*flights, depths):
    return Outcome(list(flights), [], depths=depths)


DROPPED = flight(10.0, dropped_s=10.0, retry_after_s=5.0)


def test_without_drops_there_is_nothing_to_judge():
    assert retry_truth([], outcome(depths=[]), 2).room is None


def test_room_is_judged_at_the_time_that_was_told():
    full, free = [(0.0, 2), (14.0, 2)], [(0.0, 2), (14.0, 1), (16.0, 2)]
    assert retry_truth([DROPPED], outcome(DROPPED, depths=full), 2).room == 0.0
    assert retry_truth([DROPPED], outcome(DROPPED, depths=free), 2).room == 1.0


def test_the_wait_was_long_enough_if_all_who_waited_had_left():
    left = [flight(1.0, dispatched_s=11.0), flight(2.0, dispatched_s=14.0)]
    late = [flight(1.0, dispatched_s=11.0), flight(2.0, dispatched_s=16.0)]
    depths = [(0.0, 2)]
    assert retry_truth([DROPPED], outcome(*left, DROPPED, depths=depths), 2).passed == 1.0
    assert retry_truth([DROPPED], outcome(*late, DROPPED, depths=depths), 2).passed == 0.0


def test_the_ratio_is_of_the_time_told_over_the_time_needed():
    left = [flight(1.0, dispatched_s=11.0), flight(2.0, dispatched_s=20.0)]
    assert retry_truth([DROPPED], outcome(*left, DROPPED, depths=[(0.0, 2)]), 2).ratio == pytest.approx(0.5)


def test_shares_and_means_are_over_all_drops():
    early = flight(1.0, dropped_s=1.0, retry_after_s=1.0)
    truth = retry_truth([early, DROPPED], outcome(early, DROPPED, depths=[(0.0, 2), (12.0, 0)]), 2)
    assert (truth.mean_s, truth.room) == (pytest.approx(3.0), 0.5)
