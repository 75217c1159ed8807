from gateway.dispatch.retry_budget import BURST, REFILL_PER_S, RETRY_SHARE, RetryBudget


def taken(budget, now, wanted=10_000):
    return sum(budget.take(now) for _ in range(wanted))


def test_the_budget_allows_a_burst_of_retries():
    budget = RetryBudget()
    assert taken(budget, 0.0) == BURST
    assert taken(budget, 0.0) == 0


def test_failing_backends_get_a_limited_share_of_retries():
    budget = RetryBudget()
    taken(budget, 0.0)
    requests = 5000
    retries = 0
    for _ in range(requests):
        budget.note_request(0.0)
        retries += taken(budget, 0.0, wanted=2)
    assert RETRY_SHARE * requests - 2 <= retries <= RETRY_SHARE * requests


def test_the_budget_refills_with_time():
    budget = RetryBudget()
    taken(budget, 0.0)
    assert taken(budget, 5.0) == int(5 * REFILL_PER_S)


def test_the_budget_never_exceeds_a_burst():
    budget = RetryBudget()
    for _ in range(10_000):
        budget.note_request(0.0)
    assert taken(budget, 1e9) == BURST


def test_a_clock_that_stops_or_steps_back_adds_nothing():
    budget = RetryBudget()
    taken(budget, 100.0)
    assert taken(budget, 50.0) == 0
    assert taken(budget, 100.0) == 0
