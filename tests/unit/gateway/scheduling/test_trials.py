"""New backends, and backends that were unreachable, get at most their limit of requests."""

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Dispatch, Finished, QueueLimits, Request, Submit
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from tests.unit.gateway.scheduling.scheduler_helpers import observed

LENGTH = LengthQuantiles.of((10, 20, 40, 80, 150, 200))


def scheduler():
    return Scheduler(policy_named("magnus"), QueueLimits(100, 10**6))


def submits(count, first=0):
    return [Submit(Request(f"r{first + i}", "llama", 100, LENGTH, 0.0, 600.0)) for i in range(count)]


def sent(actions, backend="gpu-0"):
    return [action.id for action in actions if isinstance(action, Dispatch) and action.backend == backend]


def test_backend_on_trial_gets_one_request_at_a_time():
    core = scheduler()
    assert len(sent(core.step([observed(trial_limit=1), *submits(5)], 0.0))) == 1
    assert sent(core.step([observed(trial_limit=1)], 1.0)) == []
    assert len(sent(core.step([Finished("r0")], 2.0))) == 1


def test_requests_from_before_the_trial_are_not_counted():
    core = scheduler()
    assert len(sent(core.step([observed(), *submits(3)], 0.0))) == 3
    assert sent(core.step([observed(healthy=False), *submits(3, first=3)], 1.0)) == []
    assert len(sent(core.step([observed(trial_limit=1)], 2.0))) == 1


def test_higher_limit_allows_more_requests():
    core = scheduler()
    assert len(sent(core.step([observed(trial_limit=4), *submits(20)], 0.0))) == 4
    assert len(sent(core.step([observed(trial_limit=8)], 1.0))) == 4
    assert len(sent(core.step([observed()], 2.0))) == 12


def test_request_over_the_limit_goes_to_another_backend():
    core = scheduler()
    actions = core.step([observed("a", trial_limit=2), observed("b"), *submits(10)], 0.0)
    assert (len(sent(actions, "a")), len(sent(actions, "b"))) == (2, 8)


def test_new_trial_counts_from_zero():
    core = scheduler()
    core.step([observed(trial_limit=1), *submits(5)], 0.0)
    core.step([observed(healthy=False)], 1.0)
    assert len(sent(core.step([observed(trial_limit=1)], 2.0))) == 1


def test_trial_goes_to_another_request_than_those_that_failed():
    core = scheduler()
    bad, good = (
        Request(name, "llama", 100, LENGTH, 0.0, 600.0, fingerprint=(0, prompt))
        for name, prompt in (("bad", 1), ("good", 2))
    )
    reserved = observed(trial_limit=1, reserved_from=frozenset({(0, 1)}))
    assert sent(core.step([reserved, Submit(bad)], 0.0)) == []
    assert sent(core.step([Submit(good)], 1.0)) == ["good"]
    assert sent(core.step([Finished("good"), observed()], 2.0)) == ["bad"]


def test_waiting_request_lets_others_pass_when_a_trial_becomes_reserved():
    core = scheduler()
    bad, good = (
        Request(name, "llama", 100, LENGTH, 0.0, 600.0, fingerprint=(0, prompt))
        for name, prompt in (("bad", 1), ("good", 2))
    )
    assert sent(core.step([observed(healthy=False), Submit(bad), Submit(good)], 0.0)) == []
    assert sent(core.step([observed(trial_limit=1, reserved_from=frozenset({(0, 1)}))], 1.0)) == ["good"]
