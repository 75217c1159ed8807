import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    BackendRemoved,
    Dispatch,
    Drop,
    DropReason,
    Finished,
    OutOfMemory,
    Progress,
    QueueLimits,
    Reconfigure,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.policies import Hrrn, Sjf, policy_named
from tests.unit.gateway.scheduling.scheduler_helpers import observed, start, submit

# Dispatch


def test_request_is_dispatched_in_the_step_of_its_arrival():
    assert start(observed()).step([submit("a")], 0.0) == [Dispatch("a", "gpu-0")]


def test_request_waits_for_the_first_backend():
    scheduler = start(submit("a"))
    assert (scheduler.waiting, scheduler.running) == (1, 0)
    assert scheduler.step([observed()], 5.0) == [Dispatch("a", "gpu-0")]
    assert (scheduler.waiting, scheduler.running) == (0, 1)


def test_request_waits_for_a_backend_that_serves_its_model():
    scheduler = start(observed(models=["mistral"]))
    assert scheduler.step([submit("a")], 0.0) == []
    assert scheduler.step([observed("gpu-1")], 1.0) == [Dispatch("a", "gpu-1")]


def test_unhealthy_backend_gets_no_request():
    scheduler = start(observed(healthy=False))
    assert scheduler.step([submit("a")], 0.0) == []
    assert scheduler.step([observed(healthy=True)], 1.0) == [Dispatch("a", "gpu-0")]


def test_waiting_model_does_not_delay_another():
    scheduler = start(observed(models=["llama"]), submit("a", model="mistral"))
    assert scheduler.step([submit("b", model="llama", at=1.0)], 1.0) == [Dispatch("b", "gpu-0")]


def test_burst_spreads_over_backends_before_the_next_scrape():
    kv = {"kv_capacity_tokens": 10_000}
    scheduler = start(observed("gpu-0", **kv), observed("gpu-1", **kv))
    actions = scheduler.step([submit(prompt=100) for _ in range(10)], 0.0)
    assert sorted(action.backend for action in actions) == ["gpu-0"] * 5 + ["gpu-1"] * 5


def test_backends_of_unknown_memory_share_the_work():
    scheduler = start(observed("gpu-0"), observed("gpu-1"))
    actions = scheduler.step([submit() for _ in range(4)], 0.0)
    assert [action.backend for action in actions] == ["gpu-0", "gpu-1", "gpu-0", "gpu-1"]


# Memory


def test_admission_plans_the_peak_and_not_only_the_prompt():
    scheduler = start(observed(kv_capacity_tokens=1000), submit("a", prompt=100, output=400))
    assert scheduler.step([submit("b", prompt=100, output=400)], 0.0) == []
    assert scheduler.backend_status("gpu-0").kv_reserved_tokens == 500
    assert scheduler.step([Finished("a")], 1.0) == [Dispatch("b", "gpu-0")]


def test_idle_backend_gets_work_regardless_of_the_prediction():
    scheduler = start(observed(kv_capacity_tokens=1000), submit("a", prompt=10, output=5000))
    assert scheduler.in_flight("gpu-0") == 1


def test_growing_answers_only_reduce_the_room():
    scheduler = start(observed(kv_capacity_tokens=1000))
    length = LengthQuantiles.of((10, 11, 12, 13, 14, 15))
    scheduler.step([Submit(Request("a", "llama", 100, length, 0.0, 60.0))], 0.0)
    assert scheduler.backend_status("gpu-0").kv_reserved_tokens < 200
    assert scheduler.step([Progress("a", 500)], 1.0) == []
    assert scheduler.backend_status("gpu-0").kv_reserved_tokens > 600
    assert scheduler.step([submit("b", prompt=400)], 1.0) == []


def test_max_concurrency_of_the_operator_is_not_exceeded():
    scheduler = start(observed(max_concurrency=2))
    actions = scheduler.step([submit() for _ in range(5)], 0.0)
    assert (len(actions), scheduler.waiting) == (2, 3)


def test_prompt_over_the_context_needs_no_memory_but_counts_as_running():
    scheduler = start(observed(kv_capacity_tokens=1000, max_model_len=400), submit("a", prompt=390, output=500))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == [Dispatch("b", "gpu-0")]
    scheduler = start(observed(max_concurrency=1, max_model_len=400), submit("a"))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == []


def test_predictions_that_are_too_short_are_scaled_up():
    scheduler = start(observed(kv_capacity_tokens=1000))
    for number in range(100):
        scheduler.step([submit(f"{number}", output=20, sequences=2)], float(number))
        scheduler.step([Finished(f"{number}", 2 * 200)], number + 0.5)
    length = LengthQuantiles.of((20,) * 6)
    scheduler.step([Submit(Request("a", "llama", 100, length, 100.0, 160.0))], 100.0)
    assert scheduler.backend_status("gpu-0").kv_reserved_tokens == pytest.approx(300, rel=0.02)


def test_truncated_answers_are_not_learned():
    scheduler = start(observed(kv_capacity_tokens=1000))
    for number in range(100):
        scheduler.step([submit(f"{number}", output=20), Finished(f"{number}")], float(number))
    scheduler.step([submit("a", prompt=100, output=20, at=100.0)], 100.0)
    assert scheduler.backend_status("gpu-0").kv_reserved_tokens == pytest.approx(120)


# Order


def test_first_come_first_served_ignores_the_time_of_the_body():
    scheduler = start(observed(max_concurrency=1), submit("a"))
    scheduler.step([submit("late", at=2.0), submit("later", at=3.0), submit("early", at=1.0)], 3.0)
    scheduler.step([Finished("a"), observed(healthy=False)], 3.0)
    scheduler.step([observed(max_concurrency=1)], 3.0)
    assert scheduler.step([Finished("early")], 4.0) == [Dispatch("late", "gpu-0")]
    assert scheduler.step([Finished("late")], 4.0) == [Dispatch("later", "gpu-0")]


def test_models_that_share_a_backend_take_turns_by_arrival():
    scheduler = start(observed(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    models = [("b", "llama"), ("c", "mistral"), ("d", "llama"), ("e", "mistral")]
    scheduler.step([submit(id, model=model, at=float(at)) for at, (id, model) in enumerate(models, 1)], 5.0)
    scheduler.step([Finished("a")], 6.0)
    assert scheduler.step([Finished("b")], 6.0) == [Dispatch("c", "gpu-0")]
    assert [scheduler.step([Finished(id)], 8.0)[0].id for id in "cd"] == ["d", "e"]


def test_more_urgent_priority_goes_first_over_all_models():
    scheduler = start(observed(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    scheduler.step([submit("b", at=1.0), submit("c", at=2.0, model="mistral", priority=-1)], 2.0)
    assert scheduler.step([Finished("a")], 3.0) == [Dispatch("c", "gpu-0")]


def test_overdue_request_is_not_starved_by_another_models_priority():
    scheduler = start(observed(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    scheduler.step([submit("low", at=1.0, priority=5), submit("high", at=2.0, model="mistral", timeout_s=1e3)], 2.0)
    assert scheduler.step([Finished("a")], 40.0) == [Dispatch("low", "gpu-0")]


def test_request_that_arrived_before_the_first_backend_has_the_same_estimate():
    scheduler = start(submit("a"), submit("b"), policy=Hrrn())
    scheduler.step([observed(max_concurrency=1), submit("c", at=5.0)], 50.0)
    assert scheduler.step([Finished("a")], 55.0) == [Dispatch("b", "gpu-0")]


def test_request_that_arrived_while_all_backends_were_down_has_the_same_estimate():
    scheduler = start(observed(max_concurrency=1), submit("a"), policy=Hrrn())
    scheduler.step([observed(healthy=False), submit("b", at=1.0)], 1.0)
    scheduler.step([observed(max_concurrency=1), submit("c", at=50.0)], 50.0)
    assert scheduler.step([Finished("a")], 60.0) == [Dispatch("b", "gpu-0")]


@pytest.mark.parametrize(("policy", "expected"), [("hrrn", ["a", "long", "b"]), ("magnus", ["a", "b", "long"])])
def test_magnus_groups_lengths_where_hrrn_orders_by_ratio_only(policy, expected):
    scheduler = start(observed(max_concurrency=1, models=["llama", "mistral"]), submit("x", model="mistral"))
    scheduler.step([Reconfigure(policy=policy_named(policy))], 0.0)
    scheduler.step([submit("a", at=1.0), submit("long", at=1.0, output=100), submit("b", at=9.9)], 10.0)
    actions = scheduler.step([Finished("x"), observed()], 10.0)
    assert [action.id for action in actions] == expected


# Unknown requests, and wake-ups


@pytest.mark.parametrize("submitted", [(), ("a",)])
def test_unknown_request_changes_nothing(submitted):
    scheduler = start(*map(submit, submitted))
    before = (scheduler.waiting, scheduler.running)
    strange = [Finished("x", 5), Progress("x", 5), Returned("x", full=True), OutOfMemory(("x", "y"))]
    assert scheduler.step(strange, 0.0) == []
    assert (scheduler.waiting, scheduler.running) == before


def test_cancelled_request_leaves_the_queue():
    scheduler = start(submit("a"), submit("b"))
    scheduler.step([Finished("a")], 0.0)
    assert scheduler.step([observed()], 0.0) == [Dispatch("b", "gpu-0")]


def test_running_requests_of_a_removed_backend_go_on():
    scheduler = start(observed(), submit("a"))
    assert scheduler.step([BackendRemoved("gpu-0"), Progress("a", 32)], 0.0) == []
    assert (scheduler.running, scheduler.backend_status("gpu-0")) == (1, None)
    scheduler.step([Finished("a", 40)], 0.0)
    assert scheduler.running == 0


def test_empty_scheduler_needs_no_wake_up():
    scheduler = start(observed(), submit("a"))
    assert (scheduler.wake_at_s(0.0), scheduler.oldest_arrival_s()) == (None, None)


def test_nearest_deadline_is_the_wake_up_and_oldest_arrival_is_reported():
    scheduler = start(submit("a", model="x", at=3.0, timeout_s=30.0), submit("b", model="y", at=4.0, timeout_s=20.0))
    assert (scheduler.wake_at_s(4.0), scheduler.oldest_arrival_s()) == (24.0, 3.0)


def test_waiting_requests_are_counted_by_class_over_all_models():
    scheduler = start(*(submit(model=model, output=out) for model in "xy" for out in (10, 10, 500)), policy=Hrrn())
    assert sorted(scheduler.waiting_by_class().values()) == [2, 4]
    assert start().waiting_by_class() == {}


# Reconfiguration


def test_new_policy_orders_the_requests_that_already_wait():
    scheduler = start(observed(max_concurrency=1), submit("a"))
    waiting = [submit("long", at=1.0, output=500), submit("short", at=2.0), submit("long too", at=3.0, output=500)]
    scheduler.step(waiting, 3.0)
    assert scheduler.step([Reconfigure(policy=Sjf())], 4.0) == []
    assert (scheduler.policy, len(scheduler.waiting_by_class())) == (Sjf(), 2)
    order = [scheduler.step([Finished(id)], 5.0)[0].id for id in ("a", "short", "long")]
    assert order == ["short", "long", "long too"]


def test_new_exponent_orders_the_requests_that_already_wait():
    scheduler = start(observed(max_concurrency=1), submit("a"), policy=Hrrn())
    scheduler.step([submit("long", at=0.0, output=500), submit("short", at=20.0, output=10)], 30.0)
    scheduler.step([Reconfigure(policy=Hrrn(0.01))], 30.0)
    assert scheduler.step([Finished("a")], 30.0) == [Dispatch("long", "gpu-0")]


def test_new_policy_keeps_deadlines_priorities_and_token_counts():
    scheduler = start(submit("a", timeout_s=10.0), submit("b", priority=-1, output=500, timeout_s=20.0))
    tokens = scheduler.waiting_tokens
    scheduler.step([Reconfigure(policy=Hrrn())], 1.0)
    assert (scheduler.waiting, scheduler.waiting_tokens, scheduler.wake_at_s(1.0)) == (2, tokens, 10.0)
    assert scheduler.step([Tick()], 10.0) == [Drop("a", DropReason.QUEUE_TIMEOUT)]
    assert scheduler.step([observed()], 11.0) == [Dispatch("b", "gpu-0")]


def test_new_limits_apply_to_later_requests():
    scheduler = start(submit("a"), submit("b"), submit("c"))
    assert scheduler.step([Reconfigure(limits=QueueLimits(1, 10**6))], 0.0) == []
    (drop,) = scheduler.step([submit("d")], 0.0)
    assert (drop.id, drop.reason, scheduler.waiting) == ("d", DropReason.QUEUE_FULL, 3)


def test_field_that_is_not_set_keeps_its_value():
    scheduler = start(submit("a"), policy=Sjf(), max_requests=1)
    scheduler.step([Reconfigure()], 0.0)
    assert scheduler.policy == Sjf()
    assert [drop.id for drop in scheduler.step([submit("b")], 0.0)] == ["b"]
