import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    BackendRemoved,
    Dispatch,
    Finished,
    OutOfMemory,
    Progress,
    Request,
    Returned,
    Submit,
)
from gateway.scheduling.policies import Hrrn, policy_named
from tests.unit.gateway.scheduling.messages import seen, started, submit

# To a backend


def test_a_request_goes_out_in_the_step_it_comes_in():
    assert started(seen()).step([submit("a")], 0.0) == [Dispatch("a", "gpu-0")]


def test_a_request_waits_for_the_first_backend():
    scheduler = started(submit("a"))
    assert (scheduler.waiting, scheduler.running) == (1, 0)
    assert scheduler.step([seen()], 5.0) == [Dispatch("a", "gpu-0")]
    assert (scheduler.waiting, scheduler.running) == (0, 1)


def test_a_request_waits_for_a_backend_that_serves_its_model():
    scheduler = started(seen(models=["mistral"]))
    assert scheduler.step([submit("a")], 0.0) == []
    assert scheduler.step([seen("gpu-1")], 1.0) == [Dispatch("a", "gpu-1")]


def test_an_unhealthy_backend_gets_nothing():
    scheduler = started(seen(healthy=False))
    assert scheduler.step([submit("a")], 0.0) == []
    assert scheduler.step([seen(healthy=True)], 1.0) == [Dispatch("a", "gpu-0")]


def test_a_model_that_waits_does_not_hold_up_another():
    scheduler = started(seen(models=["llama"]), submit("a", model="mistral"))
    assert scheduler.step([submit("b", model="llama", at=1.0)], 1.0) == [Dispatch("b", "gpu-0")]


def test_a_herd_spreads_before_the_next_look():
    kv = {"kv_capacity_tokens": 10_000}
    scheduler = started(seen("gpu-0", **kv), seen("gpu-1", **kv))
    actions = scheduler.step([submit(prompt=100) for _ in range(10)], 0.0)
    assert sorted(action.backend for action in actions) == ["gpu-0"] * 5 + ["gpu-1"] * 5


def test_backends_of_unknown_memory_share_the_work():
    scheduler = started(seen("gpu-0"), seen("gpu-1"))
    actions = scheduler.step([submit() for _ in range(4)], 0.0)
    assert [action.backend for action in actions] == ["gpu-0", "gpu-1", "gpu-0", "gpu-1"]


# Memory


def test_memory_is_kept_for_the_peak_and_not_for_the_prompt():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=100, output=400))
    assert scheduler.step([submit("b", prompt=100, output=400)], 0.0) == []
    assert scheduler.load("gpu-0").ledger.peak_tokens() == 500
    assert scheduler.step([Finished("a")], 1.0) == [Dispatch("b", "gpu-0")]


def test_an_idle_backend_gets_work_whatever_is_predicted():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=10, output=5000))
    assert scheduler.in_flight("gpu-0") == 1


def test_growing_answers_make_room_scarce_and_never_plentiful():
    scheduler = started(seen(kv_capacity_tokens=1000))
    length = LengthQuantiles.of((10, 11, 12, 13, 14, 15))
    scheduler.step([Submit(Request("a", "llama", 100, length, 0.0, 60.0))], 0.0)
    assert scheduler.load("gpu-0").ledger.peak_tokens() < 200
    assert scheduler.step([Progress("a", 500)], 1.0) == []
    assert scheduler.load("gpu-0").ledger.peak_tokens() > 600
    assert scheduler.step([submit("b", prompt=400)], 1.0) == []


def test_no_more_run_than_the_operator_allows():
    scheduler = started(seen(max_concurrency=2))
    actions = scheduler.step([submit() for _ in range(5)], 0.0)
    assert (len(actions), scheduler.waiting) == (2, 3)


def test_what_an_engine_refuses_at_once_needs_no_memory_but_counts_as_running():
    scheduler = started(seen(kv_capacity_tokens=1000, max_model_len=400), submit("a", prompt=390, output=500))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == [Dispatch("b", "gpu-0")]
    scheduler = started(seen(max_concurrency=1, max_model_len=400), submit("a"))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == []


def test_predictions_that_prove_too_short_are_planned_longer():
    scheduler = started(seen(kv_capacity_tokens=1000))
    for number in range(100):
        scheduler.step([submit(f"{number}", output=20, sequences=2)], float(number))
        scheduler.step([Finished(f"{number}", 2 * 200)], number + 0.5)
    length = LengthQuantiles.of((20,) * 6)
    scheduler.step([Submit(Request("a", "llama", 100, length, 100.0, 160.0))], 100.0)
    assert scheduler.load("gpu-0").ledger.peak_tokens() == pytest.approx(300, rel=0.02)


def test_answers_that_were_cut_off_teach_nothing_of_lengths():
    scheduler = started(seen(kv_capacity_tokens=1000))
    for number in range(100):
        scheduler.step([submit(f"{number}", output=20), Finished(f"{number}")], float(number))
    scheduler.step([submit("a", prompt=100, output=20, at=100.0)], 100.0)
    assert scheduler.load("gpu-0").ledger.peak_tokens() == pytest.approx(120)


# Order


def test_first_come_is_first_served_whoever_s_body_took_longer():
    scheduler = started(seen(max_concurrency=1), submit("a"))
    scheduler.step([submit("late", at=2.0), submit("later", at=3.0), submit("early", at=1.0)], 3.0)
    scheduler.step([Finished("a"), seen(healthy=False)], 3.0)
    scheduler.step([seen(max_concurrency=1)], 3.0)
    assert scheduler.step([Finished("early")], 4.0) == [Dispatch("late", "gpu-0")]
    assert scheduler.step([Finished("late")], 4.0) == [Dispatch("later", "gpu-0")]


def test_models_that_share_a_backend_take_turns_by_arrival():
    scheduler = started(seen(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    models = [("b", "llama"), ("c", "mistral"), ("d", "llama"), ("e", "mistral")]
    scheduler.step([submit(id, model=model, at=float(at)) for at, (id, model) in enumerate(models, 1)], 5.0)
    scheduler.step([Finished("a")], 6.0)
    assert scheduler.step([Finished("b")], 6.0) == [Dispatch("c", "gpu-0")]
    assert [scheduler.step([Finished(id)], 8.0)[0].id for id in "cd"] == ["d", "e"]


def test_a_more_urgent_priority_goes_first_over_all_models():
    scheduler = started(seen(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    scheduler.step([submit("b", at=1.0), submit("c", at=2.0, model="mistral", priority=-1)], 2.0)
    assert scheduler.step([Finished("a")], 3.0) == [Dispatch("c", "gpu-0")]


def test_who_has_waited_for_long_is_not_starved_by_another_model_s_priority():
    scheduler = started(seen(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    scheduler.step([submit("low", at=1.0, priority=5), submit("high", at=2.0, model="mistral", timeout_s=1e3)], 2.0)
    assert scheduler.step([Finished("a")], 40.0) == [Dispatch("low", "gpu-0")]


def test_a_request_that_came_while_no_backend_was_known_is_weighed_like_later_ones():
    scheduler = started(submit("a"), submit("b"), policy=Hrrn())
    scheduler.step([seen(max_concurrency=1), submit("c", at=5.0)], 50.0)
    assert scheduler.step([Finished("a")], 55.0) == [Dispatch("b", "gpu-0")]


def test_a_request_that_came_while_all_backends_were_down_is_weighed_like_later_ones():
    scheduler = started(seen(max_concurrency=1), submit("a"), policy=Hrrn())
    scheduler.step([seen(healthy=False), submit("b", at=1.0)], 1.0)
    scheduler.step([seen(max_concurrency=1), submit("c", at=50.0)], 50.0)
    assert scheduler.step([Finished("a")], 60.0) == [Dispatch("b", "gpu-0")]


@pytest.mark.parametrize(("policy", "expected"), [("hrrn", ["a", "long", "b"]), ("magnus", ["a", "b", "long"])])
def test_magnus_sends_those_of_one_length_together_where_hrrn_goes_by_ratio_alone(policy, expected):
    scheduler = started(seen(max_concurrency=1, models=["llama", "mistral"]), submit("x", model="mistral"))
    scheduler.policy = policy_named(policy)
    scheduler.step([submit("a", at=1.0), submit("long", at=1.0, output=100), submit("b", at=9.9)], 10.0)
    actions = scheduler.step([Finished("x"), seen()], 10.0)
    assert [action.id for action in actions] == expected


# Who is not there, and waking


@pytest.mark.parametrize("submitted", [(), ("a",)])
def test_a_request_that_nobody_knows_any_more_changes_nothing(submitted):
    scheduler = started(*map(submit, submitted))
    before = (scheduler.waiting, scheduler.running)
    strange = [Finished("x", 5), Progress("x", 5), Returned("x", full=True), OutOfMemory(("x", "y"))]
    assert scheduler.step(strange, 0.0) == []
    assert (scheduler.waiting, scheduler.running) == before


def test_a_client_that_leaves_the_queue_is_forgotten():
    scheduler = started(submit("a"), submit("b"))
    scheduler.step([Finished("a")], 0.0)
    assert scheduler.step([seen()], 0.0) == [Dispatch("b", "gpu-0")]


def test_what_runs_on_a_backend_that_is_taken_away_runs_on():
    scheduler = started(seen(), submit("a"))
    assert scheduler.step([BackendRemoved("gpu-0"), Progress("a", 32)], 0.0) == []
    assert (scheduler.running, scheduler.load("gpu-0")) == (1, None)
    scheduler.step([Finished("a", 40)], 0.0)
    assert scheduler.running == 0


def test_nothing_to_wait_for_needs_no_waking():
    scheduler = started(seen(), submit("a"))
    assert (scheduler.wake_at_s(0.0), scheduler.oldest_arrival_s()) == (None, None)


def test_the_nearest_deadline_wakes_and_the_oldest_arrival_is_told():
    scheduler = started(submit("a", model="x", at=3.0, timeout_s=30.0), submit("b", model="y", at=4.0, timeout_s=20.0))
    assert (scheduler.wake_at_s(4.0), scheduler.oldest_arrival_s()) == (24.0, 3.0)


def test_who_waits_is_counted_by_class_over_all_models():
    scheduler = started(*(submit(model=model, output=out) for model in "xy" for out in (10, 10, 500)), policy=Hrrn())
    assert sorted(scheduler.waiting_by_class().values()) == [2, 4]
    assert started().waiting_by_class() == {}
