import pytest

from gateway.scheduling.queue import MAX_RETRY_AFTER_S, DispatchRate


def rate(*, per_s, seconds=300):
    measured = DispatchRate()
    for i in range(round(per_s * seconds)):
        measured.count(i / per_s)
    return measured


@pytest.mark.parametrize("per_s", [0.5, 2, 20])
def test_retry_after_of_a_steady_queue_is_its_time_to_drain(per_s):
    assert rate(per_s=per_s).retry_after_s(40, 300.0) == pytest.approx(40 / per_s, rel=0.05)


def test_retry_after_of_a_queue_without_dispatches_is_the_longest():
    assert DispatchRate().retry_after_s(1, 0.0) == MAX_RETRY_AFTER_S


def test_retry_after_of_a_stalled_queue_grows():
    measured = rate(per_s=2)
    times = [measured.retry_after_s(20, now) for now in (300.0, 330.0, 360.0, 10_000.0)]
    assert times == sorted(times)
    assert (times[0] < 15, times[-1]) == (True, MAX_RETRY_AFTER_S)


def test_retry_after_is_at_least_one_second():
    assert rate(per_s=20).retry_after_s(1, 300.0) == 1.0
