from itertools import count

import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    BackendGone,
    BackendSeen,
    BackendState,
    Dispatch,
    Drop,
    Finished,
    Progress,
    Reason,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.scheduler import FULL_BACKOFF_S, Scheduler
from gateway.scheduling.target import START

_numbers = count()


def submit(id=None, *, prompt=10, output=10, model="llama", at=0.0, timeout_s=60.0):
    length = LengthQuantiles.of((1e6,) * 6, cap=output)
    return Submit(Request(id or f"r{next(_numbers)}", model, prompt, length, at, at + timeout_s))


def seen(name="gpu-0", *, models=("llama",), healthy=True, **known):
    return BackendSeen(BackendState(name, frozenset(models), healthy, **known))


def started(*messages, max_queue=100):
    """A scheduler that was told all this at time zero."""
    scheduler = Scheduler(max_queue)
    scheduler.step(messages, 0.0)
    return scheduler


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


def test_first_come_is_first_served():
    scheduler = started(seen(max_concurrency=1), submit("a"), submit("b"), submit("c"))
    assert scheduler.step([Finished("a")], 1.0) == [Dispatch("b", "gpu-0")]
    assert scheduler.step([Finished("b")], 2.0) == [Dispatch("c", "gpu-0")]


def test_who_arrived_first_is_first_though_its_body_took_longer():
    scheduler = started(seen(max_concurrency=1), submit("a"))
    scheduler.step([submit("late", at=2.0), submit("later", at=3.0), submit("early", at=1.0)], 3.0)
    order = [scheduler.step([Finished(id)], 4.0)[0].id for id in ("a", "early", "late")]
    assert order == ["early", "late", "later"]


def test_models_that_share_a_backend_take_turns_by_arrival():
    scheduler = started(seen(models=["llama", "mistral"], max_concurrency=1), submit("a"))
    arrivals = [
        submit(id, model=model, at=at)
        for id, model, at in [("b", "llama", 1.0), ("c", "mistral", 2.0), ("d", "llama", 3.0), ("e", "mistral", 4.0)]
    ]
    scheduler.step(arrivals, 5.0)
    order = [scheduler.step([Finished(id)], 6.0)[0].id for id in "abcd"]
    assert order == ["b", "c", "d", "e"]


def test_a_model_that_waits_does_not_hold_up_another():
    scheduler = started(seen(models=["llama"]), submit("a", model="mistral"))
    assert scheduler.step([submit("b", model="llama", at=1.0)], 1.0) == [Dispatch("b", "gpu-0")]


def test_work_goes_where_most_is_free():
    scheduler = started(seen("gpu-0", kv_capacity_tokens=1000), seen("gpu-1", kv_capacity_tokens=1000))
    assert scheduler.step([submit("a", prompt=300)], 0.0) == [Dispatch("a", "gpu-0")]
    actions = scheduler.step([submit("b"), submit("c")], 0.0)
    assert actions == [Dispatch("b", "gpu-1"), Dispatch("c", "gpu-1")]


def test_other_clients_work_counts_as_load():
    scheduler = started(
        seen("gpu-0", kv_capacity_tokens=1000, kv_used_tokens=500), seen("gpu-1", kv_capacity_tokens=1000)
    )
    assert scheduler.step([submit("a")], 0.0) == [Dispatch("a", "gpu-1")]


def test_backends_of_unknown_memory_share_the_work():
    scheduler = started(seen("gpu-0"), seen("gpu-1"))
    actions = scheduler.step([submit() for _ in range(4)], 0.0)
    assert [action.backend for action in actions] == ["gpu-0", "gpu-1", "gpu-0", "gpu-1"]


def test_memory_is_kept_for_the_peak_and_not_for_the_prompt():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=100, output=400))
    assert scheduler.step([submit("b", prompt=100, output=400)], 0.0) == []
    assert scheduler.reserved_tokens("gpu-0") == 500
    assert scheduler.step([Finished("a")], 1.0) == [Dispatch("b", "gpu-0")]


def test_memory_is_filled_up_to_the_target():
    fitting = round(1000 * START) - 500 - 10
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=490, output=10))
    assert scheduler.step([submit("too much", prompt=fitting + 1, output=10)], 0.0) == []
    scheduler.step([Finished("too much")], 0.0)
    assert scheduler.step([submit("b", prompt=fitting, output=10)], 0.0) == [Dispatch("b", "gpu-0")]


def test_memory_that_others_use_is_not_given_away():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=100, output=1))
    scheduler.step([seen(kv_capacity_tokens=1000, kv_used_tokens=800)], 0.0)
    assert scheduler.step([submit("b", prompt=200, output=1)], 0.0) == []


def test_our_own_use_is_not_taken_for_others():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=500, output=10))
    scheduler.step([seen(kv_capacity_tokens=1000, kv_used_tokens=500)], 0.0)
    assert scheduler.step([submit("b", prompt=300, output=10)], 0.0) == [Dispatch("b", "gpu-0")]


def test_an_idle_backend_gets_work_whatever_is_predicted():
    scheduler = started(seen(kv_capacity_tokens=1000), submit("a", prompt=10, output=5000))
    assert scheduler.running_on("gpu-0") == 1


def test_an_answer_that_grows_beyond_its_prediction_makes_room_scarce():
    scheduler = started(seen(kv_capacity_tokens=1000))
    length = LengthQuantiles.of((10, 11, 12, 13, 14, 15))
    scheduler.step([Submit(Request("a", "llama", 100, length, 0.0, 60.0))], 0.0)
    before = scheduler.reserved_tokens("gpu-0")
    scheduler.step([Progress("a", 500)], 1.0)
    assert before < 200
    assert scheduler.reserved_tokens("gpu-0") > 600


def test_no_more_run_than_the_operator_allows():
    scheduler = started(seen(max_concurrency=2))
    actions = scheduler.step([submit() for _ in range(5)], 0.0)
    assert (len(actions), scheduler.waiting) == (2, 3)


def test_what_an_engine_refuses_at_once_needs_no_memory():
    scheduler = started(seen(kv_capacity_tokens=1000, max_model_len=400), submit("a", prompt=390, output=500))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == [Dispatch("b", "gpu-0")]


def test_what_an_engine_refuses_still_counts_as_one_of_those_it_may_have():
    scheduler = started(seen(max_concurrency=1, max_model_len=400), submit("a"))
    assert scheduler.step([submit("b", prompt=400)], 0.0) == []


def test_a_full_queue_says_when_to_come_back():
    scheduler = started(submit("a"), submit("b"), max_queue=2)
    (drop,) = scheduler.step([submit("c")], 0.0)
    assert (drop.id, drop.reason) == ("c", Reason.QUEUE_FULL)
    assert drop.retry_after_s >= 1.0
    assert scheduler.waiting == 2


def test_who_waited_too_long_is_dropped():
    scheduler = started(submit("a", timeout_s=10.0), submit("b", timeout_s=20.0))
    assert scheduler.step([Tick()], 9.9) == []
    assert scheduler.step([Tick()], 10.0) == [Drop("a", Reason.QUEUE_TIMEOUT)]
    assert scheduler.step([Tick()], 20.0) == [Drop("b", Reason.QUEUE_TIMEOUT)]


def test_who_runs_is_never_dropped():
    scheduler = started(seen(), submit("a", timeout_s=10.0))
    assert scheduler.step([Tick()], 1000.0) == []
    assert scheduler.running == 1


def test_a_request_that_failed_goes_elsewhere():
    scheduler = started(seen("gpu-0"), seen("gpu-1"), submit("a"))
    assert scheduler.step([Returned("a", full=False)], 1.0) == [Dispatch("a", "gpu-1")]


def test_a_request_that_failed_everywhere_is_dropped():
    scheduler = started(seen("gpu-0"), seen("gpu-1"), submit("a"))
    scheduler.step([Returned("a", full=False)], 1.0)
    assert scheduler.step([Returned("a", full=False)], 2.0) == [Drop("a", Reason.BACKENDS_FAILED)]
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_a_full_backend_is_left_alone_for_a_moment():
    scheduler = started(seen(), submit("a"))
    assert scheduler.step([Returned("a", full=True)], 1.0) == []
    assert scheduler.wake_at_s(1.0) == 1.0 + FULL_BACKOFF_S
    assert scheduler.step([Tick()], 1.0 + FULL_BACKOFF_S) == [Dispatch("a", "gpu-0")]


def test_a_full_backend_that_then_dies_has_failed_nobody():
    scheduler = started(seen(), submit("a"))
    assert scheduler.step([seen(healthy=False), Returned("a", full=True)], 1.0) == []
    assert scheduler.step([seen()], 9.0) == [Dispatch("a", "gpu-0")]


def test_what_comes_back_goes_to_the_front():
    scheduler = started(seen(max_concurrency=1), submit("a", at=0.0), submit("b", at=1.0), submit("c", at=2.0))
    scheduler.step([Returned("a", full=True)], 3.0)
    assert scheduler.step([Tick()], 4.0) == [Dispatch("a", "gpu-0")]
    assert scheduler.step([Finished("a")], 5.0) == [Dispatch("b", "gpu-0")]


def test_several_that_come_back_keep_their_order():
    scheduler = started(seen(max_concurrency=2), *(submit(id, at=at) for at, id in enumerate("abcd")))
    scheduler.step([Returned("b", full=True), Returned("a", full=True)], 5.0)
    assert [action.id for action in scheduler.step([Tick()], 6.0)] == ["a", "b"]


def test_who_waits_for_another_backend_holds_up_nobody_on_the_one_it_failed_on():
    gpu_1 = {"models": ["llama", "mistral"], "max_concurrency": 1}
    scheduler = started(seen("gpu-0"), seen("gpu-1", **gpu_1), submit("a"), submit("b", model="mistral"))
    assert scheduler.step([Returned("a", full=False)], 1.0) == []  # gpu-1 has b
    assert scheduler.step([seen("gpu-1", **gpu_1, healthy=False)], 2.0) == []
    assert scheduler.step([submit("c", at=3.0)], 3.0) == [Dispatch("c", "gpu-0")]


def test_nobody_overtakes_on_the_backend_that_another_waits_for():
    kv = {"kv_capacity_tokens": 1000}
    scheduler = started(seen("gpu-0", **kv), seen("gpu-1", **kv), submit("a", prompt=600), submit("b", prompt=700))
    scheduler.step([Returned("a", full=False)], 1.0)  # waits for gpu-1, where b leaves too little
    actions = scheduler.step([submit("c", prompt=600, at=2.0), submit("d", prompt=100, at=3.0)], 3.0)
    assert actions == [Dispatch("c", "gpu-0"), Dispatch("d", "gpu-0")]
    assert scheduler.step([submit("e", prompt=230, at=4.0)], 4.0) == []  # gpu-1 has room for e, but a is first
    assert scheduler.step([Finished("b")], 5.0) == [Dispatch("a", "gpu-1"), Dispatch("e", "gpu-1")]


@pytest.mark.parametrize("submitted", [(), ("a",)])
def test_a_request_that_nobody_knows_any_more_changes_nothing(submitted):
    scheduler = started(*map(submit, submitted))
    before = (scheduler.waiting, scheduler.running)
    assert scheduler.step([Finished("x"), Progress("x", 5), Returned("x", full=True)], 0.0) == []
    assert (scheduler.waiting, scheduler.running) == before


def test_a_client_that_leaves_the_queue_is_forgotten():
    scheduler = started(submit("a"), submit("b"))
    scheduler.step([Finished("a")], 0.0)
    assert scheduler.step([seen()], 0.0) == [Dispatch("b", "gpu-0")]


def test_what_runs_on_a_backend_that_is_taken_away_runs_on():
    scheduler = started(seen(), submit("a"))
    assert scheduler.step([BackendGone("gpu-0"), Progress("a", 32)], 0.0) == []
    assert scheduler.running == 1
    scheduler.step([Finished("a")], 0.0)
    assert (scheduler.running, scheduler.running_on("gpu-0"), scheduler.reserved_tokens("gpu-0")) == (0, 0, 0)


def test_nothing_to_wait_for_needs_no_waking():
    scheduler = started(seen(), submit("a"))
    assert scheduler.wake_at_s(0.0) is None
    assert scheduler.oldest_arrival_s() is None


def test_the_nearest_deadline_wakes():
    scheduler = started(submit("a", model="x", timeout_s=30.0), submit("b", model="y", timeout_s=20.0))
    assert scheduler.wake_at_s(0.0) == 20.0


def test_the_oldest_that_waits_is_told():
    scheduler = started(submit("a", model="x", at=3.0), submit("b", model="y", at=2.0))
    assert scheduler.oldest_arrival_s() == 2.0
