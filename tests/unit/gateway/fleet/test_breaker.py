import pytest

from gateway.fleet.breaker import (
    FAILURES_TO_OPEN,
    FAILURES_TO_REOPEN,
    FIRST_BACKOFF_S,
    MAX_BACKOFF_S,
    MIN_OUTCOMES,
    RAMP_S,
    RAMP_START,
    WINDOW_S,
    Breaker,
    Circuit,
)


def failing(times=FAILURES_TO_OPEN, now=0.0):
    breaker = Breaker()
    for _ in range(times):
        breaker.record_failure(now, now)
    return breaker


def half_open():
    breaker = failing()
    breaker.poll(breaker.retry_s)
    assert breaker.circuit is Circuit.HALF_OPEN
    return breaker, breaker.retry_s


def recovered():
    breaker, now = half_open()
    breaker.record_first_byte(now, now)
    assert breaker.circuit is Circuit.CLOSED
    return breaker, now


def test_failures_in_a_row_open_the_circuit():
    assert failing(FAILURES_TO_OPEN - 1).circuit is Circuit.CLOSED
    assert failing(FAILURES_TO_OPEN).circuit is Circuit.OPEN


def test_success_ends_a_row_of_failures():
    breaker = failing(FAILURES_TO_OPEN - 1)
    breaker.record_success(0.0, 0.0)
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.record_failure(0.0, 0.0)
    assert breaker.circuit is Circuit.CLOSED


def test_old_failures_do_not_count():
    breaker = failing(FAILURES_TO_OPEN - 1)
    later = WINDOW_S + 0.1
    breaker.record_failure(later, later)
    assert breaker.circuit is Circuit.CLOSED


@pytest.mark.parametrize(("every", "circuit"), [(2, Circuit.OPEN), (3, Circuit.CLOSED)])
def test_half_of_the_requests_failing_opens_the_circuit_in_any_order(every, circuit):
    breaker = Breaker()
    for i in range(3 * MIN_OUTCOMES):
        now = i / 10
        if i % every:
            breaker.record_success(now, now)
        else:
            breaker.record_failure(now, now)
    assert breaker.circuit is circuit


def test_open_circuit_is_half_open_after_its_back_off():
    breaker = failing()
    breaker.poll(FIRST_BACKOFF_S - 0.01)
    assert breaker.circuit is Circuit.OPEN
    assert breaker.next_change_s(0.5) == FIRST_BACKOFF_S
    breaker.poll(FIRST_BACKOFF_S)
    assert (breaker.circuit, breaker.limit(FIRST_BACKOFF_S)) == (Circuit.HALF_OPEN, 1)


def test_back_off_doubles_with_every_failed_trial_up_to_a_limit():
    breaker, now = half_open()
    pauses = []
    for _ in range(10):
        breaker.record_failure(now, now)
        assert breaker.circuit is Circuit.OPEN
        pauses.append(breaker.retry_s - now)
        now = breaker.retry_s
        breaker.poll(now)
    assert pauses[:4] == [2, 4, 8, 16]
    assert pauses[-1] == pauses[-2] == MAX_BACKOFF_S


def test_answer_to_the_trial_closes_the_circuit_and_the_limit_grows():
    breaker, now = recovered()
    assert [breaker.limit(now + s) for s in (0, 0.9, 1, 2, 3)] == [4, 4, 8, 16, 32]
    assert breaker.next_change_s(now + 1.5) == now + 2
    breaker.poll(now + RAMP_S)
    assert breaker.limit(now + RAMP_S) is None


def test_failure_resets_the_growing_limit():
    breaker, now = recovered()
    breaker.record_failure(now + 3, now + 3)
    assert (breaker.circuit, breaker.limit(now + 3)) == (Circuit.CLOSED, RAMP_START)


def test_circuit_opens_sooner_and_for_longer_during_the_warm_up():
    breaker, now = recovered()
    for _ in range(FAILURES_TO_REOPEN):
        breaker.record_failure(now, now)
    assert (breaker.circuit, breaker.retry_s) == (Circuit.OPEN, now + 2 * FIRST_BACKOFF_S)


def test_back_off_starts_again_after_the_warm_up():
    breaker, now = recovered()
    now += RAMP_S
    breaker.poll(now)
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.circuit is Circuit.CLOSED
        breaker.record_failure(now, now)
    assert breaker.retry_s == now + FIRST_BACKOFF_S


def test_requests_sent_before_the_circuit_opened_do_not_affect_the_trial():
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        breaker.record_failure(5.0, 10.0)
    breaker.poll(11.0)
    breaker.record_failure(5.0, 11.5)
    assert breaker.circuit is Circuit.HALF_OPEN
    breaker.record_first_byte(5.0, 11.5)
    assert breaker.circuit is Circuit.HALF_OPEN
    breaker.record_first_byte(11.0, 11.5)
    assert breaker.circuit is Circuit.CLOSED


def test_no_limit_without_failures():
    breaker = Breaker()
    breaker.record_success(0.0, 1.0)
    breaker.poll(1000.0)
    assert (breaker.circuit, breaker.limit(1000.0)) == (Circuit.CLOSED, None)
    assert breaker.next_change_s(1000.0) == float("inf")
