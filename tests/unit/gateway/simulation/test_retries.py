import pytest

from gateway.prediction.prediction_input import HistoryKey
from gateway.simulation.report import retry_accuracy
from gateway.simulation.run import RequestTrace, SimulationResult
from gateway.simulation.workload import Arrival


def trace(arrival_s, **times):
    return RequestTrace(Arrival("x", HistoryKey("app", "model"), arrival_s, 10, 10), **times)


def result(*traces, depths):
    return SimulationResult(list(traces), [], depths=depths)


DROPPED = trace(10.0, dropped_s=10.0, retry_after_s=5.0)


def test_without_drops_no_figure_is_reported():
    assert retry_accuracy([], result(depths=[]), 2).room is None


def test_room_is_measured_after_the_retry_time():
    full, free = [(0.0, 2), (14.0, 2)], [(0.0, 2), (14.0, 1), (16.0, 2)]
    assert retry_accuracy([DROPPED], result(DROPPED, depths=full), 2).room == 0.0
    assert retry_accuracy([DROPPED], result(DROPPED, depths=free), 2).room == 1.0


def test_a_retry_time_passes_if_all_waiting_requests_left_within_it():
    left = [trace(1.0, dispatched_s=11.0), trace(2.0, dispatched_s=14.0)]
    late = [trace(1.0, dispatched_s=11.0), trace(2.0, dispatched_s=16.0)]
    depths = [(0.0, 2)]
    assert retry_accuracy([DROPPED], result(*left, DROPPED, depths=depths), 2).passed == 1.0
    assert retry_accuracy([DROPPED], result(*late, DROPPED, depths=depths), 2).passed == 0.0


def test_the_ratio_is_retry_time_over_needed_time():
    left = [trace(1.0, dispatched_s=11.0), trace(2.0, dispatched_s=20.0)]
    assert retry_accuracy([DROPPED], result(*left, DROPPED, depths=[(0.0, 2)]), 2).ratio == pytest.approx(0.5)


def test_shares_and_means_are_over_all_drops():
    early = trace(1.0, dropped_s=1.0, retry_after_s=1.0)
    accuracy = retry_accuracy([early, DROPPED], result(early, DROPPED, depths=[(0.0, 2), (12.0, 0)]), 2)
    assert (accuracy.mean_s, accuracy.room) == (pytest.approx(3.0), 0.5)
