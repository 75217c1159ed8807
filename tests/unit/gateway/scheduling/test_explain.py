from dataclasses import replace

import pytest

from gateway.scheduling.demand import LengthBias
from gateway.scheduling.messages import Explanation, Finished, Returned, WaitReason
from gateway.scheduling.placement import Place, decide
from tests.unit.gateway.scheduling.backend_loads import admit, has_room, load_of, request, waiting
from tests.unit.gateway.scheduling.scheduler_helpers import observed, start, submit

NEW = waiting(request("new", prompt=100))


def decision(load, new=NEW, bias=None):
    return decide(new, load, bias or LengthBias(), 8.0)


def full():
    load = load_of()
    load.full_until_s = 9.0
    return load


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (load_of(models=frozenset({"mistral"})), WaitReason.OTHER_MODEL),
        (load_of(healthy=False), WaitReason.UNHEALTHY),
        (full(), WaitReason.FULL),
        (load_of(request("a", 50), trial_limit=1), WaitReason.TRIAL_LIMIT),
        (load_of(request("a", 50), static=True), WaitReason.BATCH),
        (load_of(request("a", 50), max_concurrency=1), WaitReason.MAX_NUM_SEQS),
        (load_of(request("a", 900)), WaitReason.MEMORY),
    ],
)
def test_a_backend_without_a_place_has_a_reason(load, reason):
    assert decision(load) is reason


def test_a_backend_that_has_failed_the_request_is_a_reason():
    assert decision(load_of(), replace(NEW, failed_on=frozenset({"gpu-0"}))) is WaitReason.FAILED


@pytest.mark.parametrize(
    "load",
    [
        load_of(),
        load_of(request("a", 50)),
        load_of(request("a", 2000), kv_capacity_tokens=None),
        load_of(trial_limit=1),
    ],
)
def test_a_backend_that_takes_the_request_is_a_place(load):
    assert isinstance(decision(load), Place)


def test_remembered_rejection_has_the_reason_memory():
    load = load_of(request("a", 900))
    assert not has_room(load, request("b"))
    assert decision(load) is WaitReason.MEMORY
    assert decision(load, waiting(replace(request(), model="mistral"))) is WaitReason.OTHER_MODEL
    assert decision(load, replace(NEW, failed_on=frozenset({"gpu-0"}))) is WaitReason.FAILED


def test_only_requests_that_were_sent_during_the_trial_count_for_its_limit():
    load = load_of(request("before", 50))
    load.on_scrape(replace(load.state, trial_limit=1), 1.0)
    assert isinstance(decision(load), Place)
    admit(load, request("trial", 50))
    assert decision(load) is WaitReason.TRIAL_LIMIT


def test_the_length_bias_counts_in_a_decision():
    bias = LengthBias()
    for _ in range(100):
        bias.learn_one(10.0, 100)
    new = request("new", prompt=600, output=40)
    unsure = waiting(replace(new, length=replace(new.length, logs=(3.6, 3.7, 3.8, 3.9, 4.0, 4.1), cap=None)))
    assert isinstance(decision(load_of(request("a", 300)), unsure), Place)
    assert decision(load_of(request("a", 300)), unsure, bias) is WaitReason.MEMORY


def test_a_decision_changes_nothing():
    load = load_of(request("a", 900))
    assert decision(load) is WaitReason.MEMORY
    assert load.quick_reason(NEW, 8.0) is None


def test_the_scheduler_explains_the_next_request_of_each_model():
    scheduler = start(observed(max_concurrency=1), submit("a"), submit("b", at=1.0), submit("c", at=2.0))
    scheduler.step([submit("d", model="mistral", at=3.0)], 3.0)
    assert scheduler.explain(5.0) == [
        Explanation("llama", "b", 4.0, {"gpu-0": WaitReason.MAX_NUM_SEQS}),
        Explanation("mistral", "d", 2.0, {"gpu-0": WaitReason.OTHER_MODEL}),
    ]


def test_a_request_may_wait_because_a_more_urgent_one_of_its_model_goes_first():
    kv = {"kv_capacity_tokens": 1000}
    scheduler = start(
        observed("gpu-0", **kv), observed("gpu-1", **kv), submit("a", prompt=600), submit("b", prompt=700)
    )
    scheduler.step([Returned("a", full=False), submit("c", prompt=600, at=2.0), submit("d", prompt=100, at=3.0)], 3.0)
    scheduler.step([submit("e", prompt=245, at=4.0)], 4.0)
    assert [(each.request_id, each.reasons) for each in scheduler.explain(4.0)] == [
        ("a", {"gpu-0": WaitReason.FAILED, "gpu-1": WaitReason.MEMORY}),
        ("e", {"gpu-0": WaitReason.MEMORY, "gpu-1": WaitReason.MORE_URGENT}),
    ]


def test_empty_queue_has_no_explanation():
    scheduler = start(observed(), submit("a"), Finished("a"))
    assert scheduler.explain(0.0) == []
