from dataclasses import replace

from gateway.scheduling.backend_load import BackendLoad
from gateway.scheduling.demand import LengthBias
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendState, Prefix, Request
from gateway.scheduling.placement import find_followers, find_place
from gateway.scheduling.policies import Hrrn
from gateway.scheduling.queue import ModelQueue, WaitingRequest
from gateway.scheduling.static_batch import place_static_batch

SURE = LengthQuantiles.of((1e6,) * 6, cap=10)


def waiting(id, prompt=100, *, output=10, at=0.0, service_s=1.0, failed_on=(), closed_batch=0, **kept):
    length = LengthQuantiles.of((output,) * 6, cap=output)
    request = Request(id, "llama", prompt, length, at, at + 60.0, **kept)
    return WaitingRequest(request, service_s, float(output), frozenset(failed_on), closed_batch)


def backend(name="gpu-0", *running, kv=1000, **known):
    """A backend on which requests with these numbers of prompt tokens run."""
    load = BackendLoad(BackendState(name, frozenset({"llama"}), healthy=True, kv_capacity_tokens=kv, **known))
    for number, prompt in enumerate(running):
        enter(load, waiting(f"{name} {number}", prompt))
    return load


def enter(load, entry):
    request = entry.request
    load.admit(request, request.length, load.ledger.forecast(request, request.length), 0.0)


def chosen(entry, *loads, bias=None):
    found = find_place(entry, loads, bias or LengthBias(), 0.0)
    return found and found.load.name


def queue_of(*entries):
    queue = ModelQueue(Hrrn())
    for entry in entries:
        queue.push(entry)
    return queue


def followers(first, load, *others):
    found = find_place(first, [load], LengthBias(), 0.0)
    enter(load, first)
    ids = []
    for follower in find_followers(found, queue_of(first, *others), LengthBias(), 0.0):
        enter(load, follower.waiting)
        ids.append(follower.waiting.request.id)
    return ids


def batch(first, load, *others):
    found = find_place(first, [load], LengthBias(), 0.0)
    return sorted(
        member.waiting.request.id for member in place_static_batch(found, queue_of(first, *others), LengthBias(), 0.0)
    )


# One request


def test_without_a_backend_there_is_no_place():
    assert chosen(waiting("a")) is None


def test_backend_with_the_earliest_finish_is_chosen():
    assert chosen(waiting("a"), backend("gpu-0", 400), backend("gpu-1"), backend("gpu-2", 200)) == "gpu-1"


def test_equal_backends_are_ordered_by_name():
    assert chosen(waiting("a"), backend("gpu-1"), backend("gpu-0")) == "gpu-0"


def test_next_backend_is_chosen_if_the_fastest_has_no_room():
    assert chosen(waiting("a", 700), backend("gpu-0", 400), backend("gpu-1", *[5] * 10)) == "gpu-1"
    assert chosen(waiting("a", 700), backend("gpu-0", 400)) is None


def test_backend_that_failed_the_request_is_not_chosen():
    assert chosen(waiting("a", failed_on=["gpu-0"]), backend("gpu-0"), backend("gpu-1", 300)) == "gpu-1"


def test_cached_prefix_attracts_a_request_unless_the_backend_is_too_busy():
    prefixes = (Prefix(7, 3000),)
    cached, crowded = backend("gpu-1", 10, kv=100_000), backend("gpu-1", *[400] * 200, kv=100_000)
    for load in (cached, crowded):
        enter(load, waiting("before", 3010, prefixes=prefixes))
    entry = waiting("a", 3010, output=100, prefixes=prefixes)
    assert chosen(entry, backend("gpu-0", 10, 10, kv=100_000), cached) == "gpu-1"
    assert chosen(entry, backend("gpu-0", 10, 10, kv=100_000), crowded) == "gpu-0"


def test_backends_of_unknown_memory_get_equal_numbers_of_requests():
    slow, fast = backend("gpu-0", kv=None), backend("gpu-1", *[10] * 3, kv=None)
    for _ in range(50):
        slow.speed.learn_decode(1.0, running=1, kv_tokens=100)
        fast.speed.learn_decode(0.001, running=1, kv_tokens=100)
    entry = waiting("a", output=100)
    assert fast.completion_s(entry.request, 100) < slow.completion_s(entry.request, 100)
    assert chosen(entry, slow, fast) == "gpu-0"


def test_admission_applies_the_length_bias():
    bias = LengthBias()
    for _ in range(100):
        bias.learn_one(10.0, 100)
    entry = waiting("a", 600, output=40)
    entry = replace(entry, request=replace(entry.request, length=replace(entry.request.length, cap=None)))
    assert chosen(entry, backend("gpu-0", 300)) == "gpu-0"
    assert chosen(entry, backend("gpu-0", 300), bias=bias) is None


# Further requests for the same backend


def test_wave_takes_its_own_length_class_by_arrival_and_then_the_nearest():
    far, near = waiting("far", service_s=30.0), waiting("near", service_s=2.1)
    same = [waiting(f"same {i}", at=float(i), service_s=1.1) for i in (1, 2)]
    assert followers(waiting("first"), backend(kv=100_000), far, near, *reversed(same)) == [
        "same 1",
        "same 2",
        "near",
        "far",
    ]


def test_wave_is_bounded_by_memory():
    others = [waiting(str(i), 300, at=float(i)) for i in range(1, 6)]
    assert followers(waiting("first", 300), backend(), *others) == ["1", "2"]


def test_wave_is_bounded_by_max_concurrency():
    assert followers(waiting("first"), backend(max_concurrency=3), *(waiting(str(i)) for i in range(5))) == ["0", "1"]


def test_wave_leaves_out_requests_that_failed_on_the_backend():
    assert followers(waiting("first"), backend(), waiting("a", failed_on=["gpu-0"]), waiting("b")) == ["b"]


# Static engines


def static(**known):
    return backend(static=True, **known)


def test_similar_requests_share_a_static_batch_as_far_as_memory_allows():
    others = [waiting(f"r{i}", at=float(-i)) for i in range(1, 20)]
    assert len(batch(waiting("first"), static(max_concurrency=7), *others)) == 7
    assert len(batch(waiting("first"), static(kv=4 * 110), *others)) == 4


def test_much_longer_answers_do_not_join_a_static_batch():
    long = waiting("long", output=5000, service_s=50.0)
    assert batch(waiting("first"), static(kv=None), waiting("like"), long) == ["first", "like"]


def test_only_requests_of_one_batch_key_share_a_batch():
    others = waiting("b", batch_key=1), waiting("c", batch_key=2), waiting("d")
    assert batch(waiting("a", batch_key=1), static(), *others) == ["a", "b"]
    assert batch(waiting("a"), static(), *others) == ["a", "d"]


def test_request_that_failed_on_a_backend_does_not_join_its_static_batch():
    assert batch(waiting("a"), static(), waiting("b", failed_on=["gpu-0"]), waiting("c")) == ["a", "c"]


def test_returned_half_is_a_batch_that_no_request_joins():
    half = [waiting(f"half {i}", output=10**i, service_s=float(i), closed_batch=1) for i in (1, 2)]
    first = waiting("half 0", service_s=1.0, closed_batch=1)
    assert batch(first, static(kv=100_000), waiting("other"), half[0]) == ["half 0", "half 1"]
    assert batch(waiting("other"), static(kv=100_000), first, *half) == ["other"]


def test_returned_half_is_cut_to_the_memory_of_a_smaller_engine():
    half = [waiting(f"half {i}", closed_batch=1) for i in range(1, 6)]
    assert len(batch(waiting("half 0", closed_batch=1), static(max_concurrency=4), *half)) == 4
    assert len(batch(waiting("half 0", closed_batch=1), static(kv=3 * 110), *half)) == 3
