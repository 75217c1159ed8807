from dataclasses import replace

import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.scheduling.policies import Fcfs, Hrrn, Sjf
from gateway.scheduling.queue import MAX_LANE_SCAN, OVERDUE_SHARE, ModelQueue, WaitingRequest

LENGTH = LengthQuantiles.of((10,) * 6)


def waiting(id, *, at=0.0, service_s=1.0, priority=0, timeout_s=1000.0, prompt=10, sequences=1, **kept):
    request = Request(id, "m", prompt, LENGTH, at, at + timeout_s, sequences=sequences, priority=priority)
    return WaitingRequest(request, service_s, 10.0, **kept)


def queue_of(*entries, policy=None):
    queue = ModelQueue(policy or Fcfs())
    for entry in entries:
        queue.push(entry)
    return queue


def drained(queue, now=0.0):
    """Ids in the order of dispatch."""
    ids = []
    while head := queue.most_urgent(now):
        ids.append(head.request.id)
        queue.pop(head.request.id)
    return ids


def alike(queue, entry):
    return [other.request.id for other in queue.similar(entry)]


def test_empty_queue_has_no_next_request():
    queue = queue_of()
    assert (len(queue), queue.tokens, list(queue.heads()), queue.most_urgent(0.0)) == (0, 0, [], None)


def test_tokens_are_those_of_prompts_and_predicted_answers():
    queue = queue_of(waiting("a", prompt=100), waiting("b", prompt=50, sequences=3))
    assert queue.tokens == 110 + 80
    queue.pop("a")
    assert queue.tokens == 80
    queue.pop("b")
    assert queue.tokens == 0


def test_unknown_request_cannot_be_removed():
    queue = queue_of(waiting("a"))
    assert queue.pop("b") is None
    assert ("a" in queue, "b" in queue, len(queue)) == (True, False, 1)


def test_request_with_a_late_body_goes_before_those_that_arrived_after_it():
    queue = queue_of(
        waiting("first", at=0.0), waiting("later", at=2.0), waiting("last", at=3.0), waiting("late", at=1.0)
    )
    assert drained(queue) == ["first", "late", "later", "last"]


def test_requests_of_one_arrival_time_keep_their_order():
    assert drained(queue_of(*(waiting(id, at=1.0) for id in "abc"))) == ["a", "b", "c"]


def test_returned_request_goes_before_later_arrivals():
    queue = queue_of(*(waiting(id, at=float(at)) for at, id in enumerate("abcd")))
    b, a = queue.pop("b"), queue.pop("a")
    queue.push_back(b)
    queue.push_back(a)
    assert drained(queue) == ["a", "b", "c", "d"]


def test_returned_request_does_not_overtake_earlier_arrivals():
    queue = queue_of(*(waiting(id, at=float(at)) for at, id in enumerate("abc")))
    queue.push_back(queue.pop("b"))
    assert drained(queue) == ["a", "b", "c"]


def test_each_length_class_priority_failure_and_closed_batch_has_its_own_lane():
    queue = queue_of(
        waiting("plain"),
        waiting("long", service_s=30.0),
        waiting("low", priority=1),
        waiting("failed", failed_on=frozenset({"gpu-0"})),
        waiting("closed", closed_batch=7),
        waiting("plain too", at=1.0),
        policy=Hrrn(),
    )
    assert sorted(head.request.id for head in queue.heads()) == ["closed", "failed", "long", "low", "plain"]


def test_lowest_priority_number_goes_first_regardless_of_urgency():
    queue = queue_of(waiting("a", priority=2), waiting("b", at=5.0, priority=-1), waiting("c", at=1.0), policy=Hrrn())
    assert drained(queue, now=9.0) == ["b", "c", "a"]


def test_overdue_request_competes_with_the_most_urgent_priority():
    overdue_s = OVERDUE_SHARE * 100.0
    queue = queue_of(waiting("low", priority=5, timeout_s=100.0), waiting("high", at=1.0, timeout_s=100.0))
    assert queue.most_urgent(overdue_s).request.id == "high"
    assert queue.most_urgent(overdue_s + 0.1).request.id == "low"


def test_skipped_head_lets_the_next_lane_go_first_and_not_its_own():
    queue = queue_of(waiting("a"), waiting("a2", at=1.0), waiting("b", at=2.0, service_s=50.0), policy=Sjf())
    assert queue.most_urgent(3.0).request.id == "a"
    assert queue.most_urgent(3.0, {"a"}).request.id == "b"
    assert queue.most_urgent(3.0, {"a", "b"}) is None


def test_shorter_service_goes_first_and_one_class_by_arrival():
    queue = queue_of(
        waiting("long", service_s=9.0), waiting("b", at=2.0), waiting("a", at=1.0, service_s=1.1), policy=Sjf()
    )
    assert drained(queue, now=3.0) == ["a", "b", "long"]


def test_similar_requests_are_the_own_lane_and_then_the_nearest_lengths():
    mine = waiting("mine", service_s=8.0)
    queue = queue_of(
        mine,
        waiting("far", service_s=100.0),
        waiting("near", service_s=16.0),
        waiting("also near", service_s=4.0),
        waiting("mine too", at=1.0, service_s=8.0),
        policy=Hrrn(),
    )
    assert alike(queue, mine) == ["mine", "mine too", "also near", "near", "far"]


def test_other_priorities_and_closed_batches_are_not_similar():
    mine = waiting("mine")
    closed = waiting("closed", closed_batch=1)
    queue = queue_of(mine, waiting("low", priority=1), closed, waiting("closed too", closed_batch=1))
    assert alike(queue, mine) == ["mine"]
    assert alike(queue, closed) == ["closed", "closed too"]


def test_similar_requests_may_be_removed_during_the_iteration():
    entries = [waiting(f"r{i}", at=float(i)) for i in range(10)]
    queue = queue_of(*entries)
    for entry in queue.similar(entries[0]):
        queue.pop(entry.request.id)
    assert len(queue) == 0


def test_iteration_of_a_lane_is_limited_to_a_batch():
    entries = [waiting(f"r{i}", at=float(i)) for i in range(MAX_LANE_SCAN + 50)]
    assert len(alike(queue_of(*entries), entries[0])) == MAX_LANE_SCAN


def test_classes_are_counted_over_all_lanes():
    queue = queue_of(
        waiting("a"), waiting("b", priority=1), waiting("c", closed_batch=3), waiting("d", service_s=2.1), policy=Hrrn()
    )
    assert queue.count_by_class() == {0: 3, 2: 1}


@pytest.mark.parametrize("policy", [Fcfs(), Sjf(), Hrrn(), Hrrn(0.5)])
def test_kept_request_waits_in_the_lane_of_its_new_state(policy):
    entry = waiting("a")
    queue = queue_of(entry, policy=policy)
    taken = queue.pop("a")
    queue.push_back(replace(taken, failed_on=frozenset({"gpu-0"})))
    assert [head.failed_on for head in queue.heads()] == [frozenset({"gpu-0"})]
    assert queue.pop("a") is not None
    assert (len(queue), queue.tokens) == (0, 0)
