"""The cost of a decision does not depend on the length of the queue. Calls are counted, not timed."""

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from gateway.scheduling.messages import Finished, Progress, QueueLimits, Tick
from gateway.scheduling.policies import Hrrn
from gateway.scheduling.scheduler import Scheduler
from tests.unit.gateway.scheduling.scheduler_helpers import observed, submit

BACKENDS = 3
LONGEST = 2000


@dataclass
class Counting:
    """HRRN that counts the calls of its methods."""

    homogeneous: bool = False
    name: str = "hrrn"
    calls: Counter = field(default_factory=Counter)
    policy: Hrrn = field(default_factory=Hrrn)

    def lane(self, service_s):
        self.calls["lane"] += 1
        return self.policy.lane(service_s)

    def urgency(self, arrival_s, service_s, now):
        self.calls["urgency"] += 1
        return self.policy.urgency(arrival_s, service_s, now)


def crowded(waiting, *, homogeneous=False):
    """A scheduler with this many waiting requests, and its policy; every backend runs one request."""
    policy, chance = Counting(homogeneous), Random(0)
    scheduler = Scheduler(policy, QueueLimits(10**9, 10**15))
    engines = [observed(f"gpu-{number}", max_concurrency=1, kv_capacity_tokens=50_000) for number in range(BACKENDS)]
    first = [submit(f"first {number}", timeout_s=1e9) for number in range(BACKENDS)]
    scheduler.step([*engines, *first], 0.0)
    lengths = [chance.randint(1, LONGEST) for _ in range(waiting - 2)]
    scheduler.step([submit(output=length, timeout_s=1e9) for length in (1, LONGEST, *lengths)], 0.0)
    assert scheduler.waiting == waiting
    policy.calls.clear()
    return scheduler, policy


def cost_of(crowd, *messages):
    """Return the calls of the policy in one step (urgencies and lanes), and the number of dispatches."""
    scheduler, policy = crowd
    policy.calls.clear()
    actions = scheduler.step(messages, 10.0)
    return policy.calls["urgency"], policy.calls["lane"], len(actions)


FINISHED = [Finished(f"first {number}") for number in range(BACKENDS)]
STEPS = {"time": [Tick()], "arrival": [submit("new", at=10.0)], "growth": [Progress("first 0", 8)], "end": FINISHED}


def test_decision_computes_one_urgency_for_each_length_class():
    for waiting in (100, 10_000):
        crowd = crowded(waiting)
        for messages in STEPS.values():
            classes = len(crowd[0].waiting_by_class())
            assert classes < 45
            urgencies, _, sent = cost_of(crowd, *messages)
            assert sent == (BACKENDS if messages is FINISHED else 0)
            # The next request is chosen once, and again after each dispatch. Choosing among the models adds one.
            assert urgencies <= (1 + sent) * (classes + 3)


def test_growing_answers_cause_no_decision():
    assert cost_of(crowded(100), *STEPS["growth"]) == (0, 0, 0)


def test_wave_examines_no_more_requests_than_it_takes():
    few, many = (cost_of(crowded(waiting, homogeneous=True), *FINISHED) for waiting in (100, 10_000))
    assert few[2] == many[2] == BACKENDS
    assert many[1] <= few[1] + BACKENDS
