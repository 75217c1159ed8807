"""The common behaviour of the scheduler under all policies: one suite, run for each of them."""

import random
from typing import Any

import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    Dispatch,
    Drop,
    DropReason,
    Finished,
    Progress,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.policies import Fcfs, Hrrn, Sjf, policy_named
from gateway.scheduling.queue import OVERDUE_SHARE
from gateway.scheduling.scrape_estimates import TARGET
from tests.unit.gateway.scheduling.scheduler_helpers import observed, start

POLICIES: dict[str, Any] = {
    "fcfs": Fcfs(),
    "sjf": Sjf(),
    "hrrn": Hrrn(),
    "hrrn:0.5": Hrrn(0.5),
    "magnus": policy_named("magnus"),
}


@pytest.fixture(params=list(POLICIES.values()), ids=list(POLICIES))
def policy(request):
    return request.param


def submit(id, *, at=0.0, prompt=10, output=10, timeout_s=1000.0, model="llama", **kept):
    length = LengthQuantiles.of((output,) * 6)
    return Submit(Request(id, model, prompt, length, at, at + timeout_s, **kept))


def started(policy, *messages, max_requests=10**6, max_tokens=10**9):
    """A scheduler that has taken these messages at time zero."""
    return start(*messages, policy=policy, max_requests=max_requests, max_tokens=max_tokens)


def drops(actions):
    return [(action.id, action.reason) for action in actions if isinstance(action, Drop)]


def busy(scheduler, id="busy"):
    """Occupy the only backend, which runs one request at a time."""
    scheduler.step([observed(max_concurrency=1), submit(id)], 0.0)


def served_one_by_one(scheduler, id, now):
    """Return the ids in the order of dispatch: each request finishes as soon as it runs."""
    order = []
    while actions := scheduler.step([Finished(id)], now):
        (action,) = actions
        order.append(id := action.id)
    return order


def test_policy_dispatches(policy):
    scheduler = started(policy, observed())
    actions = scheduler.step([submit("a"), submit("b", output=5000)], 0.0)
    assert sorted(actions, key=lambda action: action.id) == [Dispatch("a", "gpu-0"), Dispatch("b", "gpu-0")]


def test_every_waiting_request_is_served_once(policy):
    scheduler = started(policy)
    busy(scheduler)
    chance = random.Random(0)
    ids = [f"r{number}" for number in range(200)]
    scheduler.step([submit(id, output=chance.randint(1, 2000), prompt=chance.randint(1, 500)) for id in ids], 1.0)
    assert sorted(served_one_by_one(scheduler, "busy", 2.0)) == sorted(ids)
    assert (scheduler.waiting, scheduler.running, scheduler.waiting_tokens) == (0, 0, 0)


def test_requests_of_equal_length_go_in_order_of_arrival(policy):
    scheduler = started(policy)
    busy(scheduler)
    ids = [f"r{number:02}" for number in range(50)]
    scheduler.step([submit(id, at=float(number)) for number, id in enumerate(ids)], 60.0)
    assert served_one_by_one(scheduler, "busy", 60.0) == ids


def test_more_urgent_priority_goes_first_regardless_of_length(policy):
    scheduler = started(policy)
    busy(scheduler)
    chance = random.Random(1)
    priorities = {f"r{number}": chance.choice([-2, 0, 0, 3]) for number in range(60)}
    scheduler.step([submit(id, output=chance.randint(1, 2000), priority=each) for id, each in priorities.items()], 1.0)
    order = [priorities[id] for id in served_one_by_one(scheduler, "busy", 10.0)]
    assert order == sorted(priorities.values())


def test_endless_stream_of_urgent_requests_does_not_starve_an_overdue_one(policy):
    scheduler = started(policy)
    busy(scheduler)
    scheduler.step([submit("low", priority=9, timeout_s=100.0)], 0.0)
    running, gone_s = "busy", None
    for second in range(1, 100):
        urgent = submit(f"high {second}", at=float(second), timeout_s=100.0)
        for action in scheduler.step([urgent, Finished(running)], float(second)):
            running = action.id
            gone_s = second if running == "low" else gone_s
    assert gone_s is not None
    assert OVERDUE_SHARE * 100.0 < gone_s <= OVERDUE_SHARE * 100.0 + 2


def test_request_does_not_return_to_the_backend_that_failed_it(policy):
    scheduler = started(policy, observed("gpu-0"), observed("gpu-1"))
    (first,) = scheduler.step([submit("a")], 0.0)
    (second,) = scheduler.step([Returned("a", full=False)], 1.0)
    assert {first.backend, second.backend} == {"gpu-0", "gpu-1"}
    assert drops(scheduler.step([Returned("a", full=False)], 2.0)) == [("a", DropReason.BACKENDS_FAILED)]


def test_request_that_failed_on_a_backend_does_not_block_it(policy):
    scheduler = started(policy, observed("gpu-0"), submit("a"))
    scheduler.step([observed("gpu-1", healthy=True, max_concurrency=1), submit("b", at=1.0)], 1.0)
    if not scheduler.in_flight("gpu-1"):
        scheduler.step([submit("c", at=1.0)], 1.0)
    assert scheduler.in_flight("gpu-1") == 1
    assert scheduler.step([Returned("a", full=False)], 2.0) == []
    assert scheduler.step([submit("d", at=3.0)], 3.0) == [Dispatch("d", "gpu-0")]


def test_only_requests_beyond_their_deadline_are_dropped(policy):
    scheduler = started(policy)
    busy(scheduler)
    chance = random.Random(2)
    waiting = [submit(f"r{s}", at=float(s), output=chance.randint(1, 900), timeout_s=50.0) for s in range(20)]
    scheduler.step(waiting, 20.0)
    for second in range(50, 71):
        expected = [(f"r{second - 50}", DropReason.QUEUE_TIMEOUT)] if second < 70 else []
        assert drops(scheduler.step([Tick()], float(second))) == expected
    assert scheduler.waiting == 0


def test_cancelled_request_is_forgotten_in_every_state(policy):
    scheduler = started(policy)
    busy(scheduler)
    scheduler.step([submit(id, output=output) for id, output in (("a", 10), ("b", 500), ("c", 10))], 1.0)
    assert scheduler.step([Finished("a"), Finished("b")], 2.0) == []
    assert served_one_by_one(scheduler, "busy", 3.0) == ["c"]


def test_queue_is_bounded_in_requests_and_tokens(policy):
    scheduler = started(policy, max_requests=5, max_tokens=1000)
    busy(scheduler)
    full = scheduler.step([submit(f"r{number}", prompt=10, output=10) for number in range(8)], 1.0)
    assert drops(full) == [(f"r{number}", DropReason.QUEUE_FULL) for number in (7, 6, 5)]
    served_one_by_one(scheduler, "busy", 2.0)
    busy(scheduler)
    full = scheduler.step([submit(f"s{number}", prompt=300, output=100) for number in range(4)], 3.0)
    assert drops(full) == [("s3", DropReason.QUEUE_FULL), ("s2", DropReason.QUEUE_FULL)]


def test_running_requests_are_bounded_by_memory_and_max_concurrency(policy):
    scheduler = started(policy, observed(kv_capacity_tokens=2000, max_concurrency=6))
    chance = random.Random(3)
    sent = set()
    for step in range(300):
        messages = [submit(f"r{step}", at=float(step), prompt=chance.randint(1, 600), output=chance.randint(1, 600))]
        if sent and chance.random() < 0.9:
            messages.append(Finished(sent.pop()))
        before = scheduler.in_flight("gpu-0")
        actions = scheduler.step(messages, float(step))
        sent.update(action.id for action in actions if isinstance(action, Dispatch))
        running = scheduler.in_flight("gpu-0")
        assert running <= 6
        if before and any(isinstance(action, Dispatch) for action in actions) and running > 1:
            assert scheduler.backend_status("gpu-0").kv_reserved_tokens <= TARGET * 2000
    assert scheduler.waiting > 10


def test_healthy_backend_is_never_idle_while_requests_wait_for_it(policy):
    chance = random.Random(4)
    names = ["gpu-0", "gpu-1", "gpu-2"]
    scheduler = started(policy, *(observed(name, kv_capacity_tokens=800) for name in names))
    running = {}
    for step in range(400):
        now = float(step)
        messages = [submit(f"r{step}", at=now, prompt=chance.randint(1, 900), output=chance.randint(1, 900))]
        for id in chance.sample(sorted(running), min(len(running), 2)):
            messages.append(Finished(id) if running.pop(id) else Tick())
        messages += [Progress(id, chance.randint(1, 500)) for id in chance.sample(sorted(running), len(running) // 2)]
        for action in scheduler.step(messages, now):
            running[action.id] = action.backend
        assert not scheduler.waiting or set(running.values()) == set(names)


def test_equal_messages_have_equal_actions(policy):
    def play():
        chance = random.Random(5)
        scheduler = started(policy, *(observed(f"gpu-{i}", kv_capacity_tokens=3000) for i in range(3)))
        answers, running = [], []
        for step in range(200):
            messages = [
                submit(f"r{step}", at=float(step), output=chance.randint(1, 900), prompt=chance.randint(1, 500))
            ]
            if running:
                messages.append(Finished(running.pop(chance.randrange(len(running))), chance.randint(1, 900)))
            actions = scheduler.step(messages, step + 0.5)
            running += [action.id for action in actions]
            answers += actions
        return answers

    assert play() == play()
