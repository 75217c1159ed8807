"""Failures that an engine answered count by application and prompt."""

from gateway.fleet.breaker import (
    FAILURES_TO_OPEN,
    MIN_OUTCOMES,
    RAMP_START,
    TRIAL_RESERVED_S,
    Breaker,
    Circuit,
    fingerprint_of,
)

BAD = fingerprint_of("bad", "prompt")


def fail(breaker, *fingerprints, now=0.0):
    for fingerprint in fingerprints:
        breaker.record_failure(now, now, fingerprint)
    return breaker


def prompts(app, count=FAILURES_TO_OPEN):
    return [fingerprint_of(app, number) for number in range(count)]


def half_open(*fingerprints):
    breaker = fail(Breaker(), *(fingerprints or prompts("a")))
    breaker.poll(breaker.retry_s)
    assert breaker.circuit is Circuit.HALF_OPEN
    return breaker, breaker.retry_s


def test_repeated_request_does_not_open_the_circuit():
    assert fail(Breaker(), *[BAD] * 200).circuit is Circuit.CLOSED


def test_repeated_request_between_answers_does_not_open_the_circuit():
    breaker = Breaker()
    for number in range(3 * MIN_OUTCOMES):
        fail(breaker, BAD)
        if number % 4 == 0:
            breaker.record_success(0.0, 0.0, fingerprint_of("good", number))
    assert breaker.circuit is Circuit.CLOSED


def test_different_prompts_open_the_circuit():
    assert fail(Breaker(), *prompts("a")[1:]).circuit is Circuit.CLOSED
    assert fail(Breaker(), *prompts("a")).circuit is Circuit.OPEN


def test_one_prompt_of_different_applications_opens_the_circuit():
    assert fail(Breaker(), *(fingerprint_of(app, "hi") for app in "abcde")).circuit is Circuit.OPEN


def test_one_application_does_not_open_the_circuit_while_another_gets_answers():
    breaker = Breaker()
    breaker.record_success(0.0, 0.0, fingerprint_of("good", "prompt"))
    fail(breaker, *prompts("bad", 3 * MIN_OUTCOMES))
    assert breaker.circuit is Circuit.CLOSED
    fail(breaker, fingerprint_of("good", "other prompt"))
    assert breaker.circuit is Circuit.OPEN


def test_failed_connections_have_no_fingerprint_and_always_count():
    breaker = Breaker()
    breaker.record_success(0.0, 0.0, fingerprint_of("good", "prompt"))
    assert fail(breaker, *[None] * FAILURES_TO_OPEN).circuit is Circuit.OPEN


def test_repeated_request_does_not_hold_the_warm_up_back():
    breaker = Breaker()
    breaker.begin_ramp(0.0)
    fail(breaker, BAD)
    fail(breaker, BAD, now=2.5)
    assert breaker.limit(3.0) == RAMP_START << 3


def test_trial_is_reserved_for_requests_that_did_not_open_the_circuit():
    breaker, now = half_open(*prompts("a"))
    assert breaker.reserved_from(now) == set(prompts("a"))
    assert breaker.next_change_s(now) == now + TRIAL_RESERVED_S
    assert breaker.reserved_from(now + TRIAL_RESERVED_S) == frozenset()


def test_failed_trial_is_reserved_from_too():
    breaker, now = half_open()
    fail(breaker, BAD, now=now)
    breaker.poll(breaker.retry_s)
    assert BAD in breaker.reserved_from(breaker.retry_s)


def test_answered_trial_ends_the_reservation():
    breaker, now = half_open()
    breaker.record_first_byte(now, now)
    assert breaker.reserved_from(now) == frozenset()


def test_failure_that_is_taken_back_does_not_count():
    breaker = fail(Breaker(), BAD, *prompts("a")[1:-1])
    breaker.take_back(BAD, 0.0)
    assert fail(breaker, fingerprint_of("b", "prompt")).circuit is Circuit.CLOSED


def test_failure_that_is_taken_back_closes_the_circuit_that_it_opened():
    breaker = fail(Breaker(), *prompts("a")[1:], BAD)
    assert breaker.circuit is Circuit.OPEN
    breaker.take_back(BAD, 0.0)
    assert breaker.circuit is Circuit.CLOSED


def test_failed_trial_that_is_taken_back_leaves_the_circuit_half_open():
    breaker, now = half_open()
    fail(breaker, BAD, now=now)
    assert breaker.circuit is Circuit.OPEN
    breaker.take_back(BAD, now)
    assert (breaker.circuit, breaker.limit(now)) == (Circuit.HALF_OPEN, 1)


def test_taking_back_one_request_does_not_close_a_circuit_that_another_opened():
    breaker = fail(Breaker(), BAD, *prompts("a")[1:])
    breaker.take_back(BAD, 0.0)
    assert breaker.circuit is Circuit.OPEN


def test_circuit_of_the_last_backend_is_tried_at_once():
    breaker = fail(Breaker(), *prompts("a"))
    breaker.poll(0.0, is_last=True)
    assert (breaker.circuit, breaker.limit(0.0)) == (Circuit.HALF_OPEN, 1)


def test_repeated_request_that_another_backend_answers_opens_the_circuit():
    breaker = Breaker()
    for _ in range(FAILURES_TO_OPEN):
        assert breaker.circuit is Circuit.CLOSED
        fail(breaker, BAD)
        breaker.confirm_failure(BAD, 0.0, 0.0)
    assert breaker.circuit is Circuit.OPEN
