from gateway.scheduling.messages import (
    Dispatch,
    Drop,
    DropReason,
    Finished,
    OutOfMemory,
    Returned,
    Tick,
)
from gateway.scheduling.scheduler import FULL_BACKOFF_S
from tests.unit.gateway.scheduling.scheduler_helpers import observed, start, submit

# The queue's bounds


def test_full_queue_drops_the_last_arrival_with_retry_after():
    scheduler = start(submit("a"), submit("b"), max_requests=3)
    drops = scheduler.step([submit("c"), submit("d"), submit("e")], 0.0)
    assert [(drop.id, drop.reason) for drop in drops] == [("e", DropReason.QUEUE_FULL), ("d", DropReason.QUEUE_FULL)]
    assert all(drop.retry_after_s >= 1.0 for drop in drops)
    assert scheduler.waiting == 3


def test_queued_tokens_are_bounded():
    scheduler = start(submit("a", prompt=500, output=100), max_tokens=1000)
    assert scheduler.waiting_tokens == 600
    (drop,) = scheduler.step([submit("b", prompt=300), submit("c", prompt=100)], 0.0)
    assert (drop.id, scheduler.waiting_tokens) == ("c", 910)


def test_request_that_is_dispatched_at_once_does_not_count_against_the_queue():
    scheduler = start(observed(), max_requests=0)
    assert len(scheduler.step([submit(), submit()], 0.0)) == 2


def test_returned_request_is_never_dropped_for_a_full_queue():
    scheduler = start(observed(max_concurrency=1), submit("a"), submit("b"), max_requests=1)
    assert scheduler.step([Returned("a", full=True)], 1.0) == []
    assert scheduler.waiting == 2


def test_request_is_dropped_at_its_deadline():
    scheduler = start(submit("a", timeout_s=10.0), submit("b", timeout_s=20.0))
    assert scheduler.step([Tick()], 9.9) == []
    assert scheduler.step([Tick()], 10.0) == [Drop("a", DropReason.QUEUE_TIMEOUT)]
    assert scheduler.step([Tick()], 20.0) == [Drop("b", DropReason.QUEUE_TIMEOUT)]


def test_running_request_is_never_dropped():
    scheduler = start(observed(), submit("a", timeout_s=10.0))
    assert scheduler.step([Tick()], 1000.0) == []
    assert scheduler.running == 1


# Returned requests


def test_failed_request_goes_to_another_backend():
    scheduler = start(observed("gpu-0"), observed("gpu-1"), submit("a"))
    assert scheduler.step([Returned("a", full=False)], 1.0) == [Dispatch("a", "gpu-1")]


def test_request_that_failed_on_all_backends_is_dropped():
    scheduler = start(observed("gpu-0"), observed("gpu-1"), submit("a"))
    scheduler.step([Returned("a", full=False)], 1.0)
    assert scheduler.step([Returned("a", full=False)], 2.0) == [Drop("a", DropReason.BACKENDS_FAILED)]
    assert (scheduler.waiting, scheduler.running) == (0, 0)


def test_full_backend_gets_no_request_during_its_back_off():
    scheduler = start(observed(), submit("a"))
    assert scheduler.step([Returned("a", full=True)], 1.0) == []
    assert scheduler.wake_at_s(1.0) == 1.0 + FULL_BACKOFF_S
    assert scheduler.step([Tick()], 1.0 + FULL_BACKOFF_S) == [Dispatch("a", "gpu-0")]


def test_full_backend_that_then_dies_has_failed_no_request():
    scheduler = start(observed(), submit("a"))
    assert scheduler.step([observed(healthy=False), Returned("a", full=True)], 1.0) == []
    assert scheduler.step([observed()], 9.0) == [Dispatch("a", "gpu-0")]


def test_returned_requests_go_to_the_front_in_their_order():
    scheduler = start(observed(max_concurrency=2), *(submit(id, at=float(at)) for at, id in enumerate("abcd")))
    scheduler.step([Returned("b", full=True), Returned("a", full=True)], 5.0)
    assert [action.id for action in scheduler.step([Tick()], 6.0)] == ["a", "b"]


def test_request_that_waits_for_another_backend_does_not_block_the_one_it_failed_on():
    gpu_1 = {"models": ["llama", "mistral"], "max_concurrency": 1}
    scheduler = start(observed("gpu-0"), observed("gpu-1", **gpu_1), submit("a"), submit("b", model="mistral"))
    assert scheduler.step([Returned("a", full=False)], 1.0) == []  # gpu-1 has b
    assert scheduler.step([observed("gpu-1", **gpu_1, healthy=False)], 2.0) == []
    assert scheduler.step([submit("c", at=3.0)], 3.0) == [Dispatch("c", "gpu-0")]


def test_request_is_not_overtaken_on_the_backend_that_it_waits_for():
    kv = {"kv_capacity_tokens": 1000}
    scheduler = start(
        observed("gpu-0", **kv), observed("gpu-1", **kv), submit("a", prompt=600), submit("b", prompt=700)
    )
    scheduler.step([Returned("a", full=False)], 1.0)  # waits for gpu-1, where b leaves too little
    actions = scheduler.step([submit("c", prompt=600, at=2.0), submit("d", prompt=100, at=3.0)], 3.0)
    assert actions == [Dispatch("c", "gpu-0"), Dispatch("d", "gpu-0")]
    assert scheduler.step([submit("e", prompt=245, at=4.0)], 4.0) == []  # gpu-1 has room for e, but a is first
    assert scheduler.step([Finished("b")], 5.0) == [Dispatch("a", "gpu-1"), Dispatch("e", "gpu-1")]


# Static engines


def static(name="gpu-0", **known):
    return observed(name, static=True, **known)


def test_static_engine_gets_its_next_batch_after_the_whole_last_one():
    scheduler = start(static(max_concurrency=2), *(submit(id, batch_key=1) for id in "abc"))
    assert scheduler.in_flight("gpu-0") == 2
    assert scheduler.step([Finished("a", 10)], 1.0) == []
    assert scheduler.step([Finished("b", 10)], 1.0) == [Dispatch("c", "gpu-0")]


def test_batch_of_one_key_is_one_call_and_without_a_key_one_call_for_each():
    together = start(static()).step([submit("a", batch_key=1), submit("b", batch_key=1)], 0.0)
    assert together == [Dispatch("a", "gpu-0", ("a", "b")), Dispatch("b", "gpu-0", ("a", "b"))]
    alone = start(static()).step([submit("a"), submit("b")], 0.0)
    assert alone == [Dispatch("a", "gpu-0"), Dispatch("b", "gpu-0")]


def test_batch_that_ran_out_of_memory_returns_in_halves_of_similar_length():
    outputs = {"a": 50, "b": 10, "c": 52, "d": 11}
    scheduler = start(static(), *(submit(id, output=output, batch_key=1) for id, output in outputs.items()))
    assert scheduler.running == 4
    first = scheduler.step([OutOfMemory(tuple("abcd")), submit("e", output=10, batch_key=1)], 1.0)
    assert sorted(action.id for action in first) in (["b", "d"], ["a", "c"])
    assert len(scheduler.step([Finished(action.id, 10) for action in first], 2.0)) == 2
    assert [action.id for action in scheduler.step([Finished(id, 10) for id in "abcd"], 3.0)] == ["e"]


def test_single_request_that_ran_out_of_memory_goes_to_another_backend():
    scheduler = start(static("gpu-0"), submit("a"))
    assert scheduler.step([static("gpu-1"), OutOfMemory(("a",))], 1.0) == [Dispatch("a", "gpu-1")]


def test_cancelled_request_of_a_failed_batch_does_not_return():
    scheduler = start(static(), *(submit(id, batch_key=1) for id in "abc"))
    scheduler.step([Finished("b"), OutOfMemory(tuple("abc"))], 1.0)
    assert (scheduler.waiting, scheduler.running) == (1, 1)
