from gateway.dispatch.retry_budget import BURST, REFILL_PER_S, RETRY_SHARE, RetryBudget


def taken(budget, now, wanted=10_000):
    return sum(budget.take(now) for _ in range(wanted))


def test_a_burst_may_be_tried_again_and_then_no_more():
    budget = RetryBudget()
    assert taken(budget, 0.0) == BURST
    assert taken(budget, 0.0) == 0


def test_a_fleet_that_fails_gets_a_share_more_and_not_a_multiple():
    budget = RetryBudget()
    taken(budget, 0.0)
    requests = 5000
    retries = 0
    for _ in range(requests):
        budget.note_request(0.0)
        retries += taken(budget, 0.0, wanted=2)
    assert RETRY_SHARE * requests - 2 <= retries <= RETRY_SHARE * requests


def test_time_fills_it_where_there_are_few_requests():
    budget = RetryBudget()
    taken(budget, 0.0)
    assert taken(budget, 5.0) == int(5 * REFILL_PER_S)


def test_no_more_is_saved_than_a_burst():
    budget = RetryBudget()
    for _ in range(10_000):
        budget.note_request(0.0)
    assert taken(budget, 1e9) == BURST


def test_a_clock_that_stands_or_steps_back_gives_nothing():
    budget = RetryBudget()
    taken(budget, 100.0)
    assert taken(budget, 50.0) == 0
    assert taken(budget, 100.0) == 0
