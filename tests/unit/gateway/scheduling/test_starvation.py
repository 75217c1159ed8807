"""Which requests may overtake, and for how long: one overloaded engine that runs one request at a time."""

from dataclasses import dataclass, field

import pytest

from gateway.scheduling.messages import Dispatch, Finished, QueueLimits
from gateway.scheduling.policies import Fcfs, Hrrn, Policy, Sjf
from gateway.scheduling.scheduler import Scheduler
from tests.unit.gateway.scheduling.scheduler_helpers import observed, submit

SHORT, LONG = 10, 60
SHORT_S = 1.0
"""Service time of a short request in seconds."""

ARRIVALS = 2
"""Number of short requests that arrive during one service; half of them find the queue full."""

MAX_REQUESTS = 20


@dataclass
class Noting:
    """A policy that records the service times that it compares."""

    policy: Policy
    service_s: list[float] = field(default_factory=list)
    homogeneous: bool = False
    name: str = "noting"

    def lane(self, service_s):
        self.service_s.append(service_s)
        return self.policy.lane(service_s)

    def urgency(self, arrival_s, service_s, now):
        return self.policy.urgency(arrival_s, service_s, now)


def overloaded(policy, waiting=0):
    """A scheduler whose only backend runs a short request at second 0, while others wait."""
    scheduler = Scheduler(policy, QueueLimits(MAX_REQUESTS, 10**9))
    shorts = [submit(output=SHORT, timeout_s=1e9) for _ in range(waiting)]
    scheduler.step([observed(max_concurrency=1), submit("running", output=SHORT), *shorts], 0.0)
    return scheduler


def turn_of_the_long_one(policy, seconds=1500):
    """Send one long request and an endless stream of short ones. Return the second of the long one's dispatch."""
    scheduler, running = overloaded(policy, MAX_REQUESTS - 1), "running"
    scheduler.step([submit("long", output=LONG, timeout_s=1e9)], 0.0)
    for second in range(1, seconds):
        now = second * SHORT_S
        shorts = [submit(output=SHORT, at=now, timeout_s=1e9) for _ in range(ARRIVALS)]
        (sent,) = [each for each in scheduler.step([Finished(running), *shorts], now) if isinstance(each, Dispatch)]
        if sent.id == "long":
            return now
        running = sent.id
    return None


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 1.25])
def test_long_request_is_dispatched_in_bounded_time_under_an_endless_stream_of_short_ones(alpha):
    policy = Noting(Hrrn(alpha))
    went_s = turn_of_the_long_one(policy)
    short_s, long_s = min(policy.service_s), max(policy.service_s)
    assert long_s > 10 * short_s
    # A short request waits at most as long as the queue before it. The ratio of the long one, (w + L) / L ** alpha, is
    # the highest as soon as it exceeds that of such a short request, except for the one that is running then.
    longest_wait_s = (MAX_REQUESTS + 1) * SHORT_S
    bound_s = (long_s / short_s) ** alpha * (longest_wait_s + short_s) - long_s + SHORT_S
    assert went_s is not None
    assert went_s <= bound_s


def test_smaller_exponent_shortens_the_wait_of_long_requests():
    waits = [turn_of_the_long_one(Hrrn(alpha)) for alpha in (0.25, 0.5, 0.75, 1.0)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] / 5


def test_first_come_first_served_dispatches_the_long_one_in_its_turn():
    assert turn_of_the_long_one(Fcfs()) == MAX_REQUESTS * SHORT_S


def test_shortest_job_first_starves_the_long_one():
    assert turn_of_the_long_one(Sjf()) is None


def test_short_request_overtakes_a_long_one_that_came_slightly_earlier():
    scheduler = overloaded(Hrrn())
    scheduler.step([submit("long", at=1.0, output=LONG), submit("short", at=2.0, output=SHORT)], 5.0)
    assert scheduler.step([Finished("running")], 5.0)[0].id == "short"
    assert scheduler.step([Finished("short")], 6.0)[0].id == "long"


def test_long_request_overtakes_after_waiting():
    scheduler = overloaded(Hrrn())
    scheduler.step([submit("long", at=0.0, output=LONG, timeout_s=1e9)], 0.0)
    scheduler.step([submit("fresh", at=499.99, output=SHORT, timeout_s=1e9)], 500.0)
    assert scheduler.step([Finished("running")], 500.0)[0].id == "long"


def test_first_come_first_served_allows_no_overtaking():
    scheduler = overloaded(Fcfs())
    scheduler.step([submit("long", at=1.0, output=LONG), submit("short", at=2.0, output=SHORT)], 5.0)
    assert scheduler.step([Finished("running")], 5.0)[0].id == "long"
