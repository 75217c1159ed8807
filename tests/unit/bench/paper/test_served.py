"""The served scheduler in the paper's testbed."""

import pytest

from bench.paper.jobs import Knowledge, poisson_jobs, samples, with_lengths
from bench.paper.run import run_static
from bench.paper.served import ServedScheduler
from bench.paper.testbed import BatchRun, Job, Testbed
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.scheduling.static_batch import MEMORY_LEVEL, planned_tokens
from gateway.training.rows import PastRow
from tests.unit.bench.paper.batches import filled, ids, taken


class Recording(ServedScheduler):
    """Records every batch that an engine received."""

    def __init__(self, testbed):
        super().__init__(testbed)
        self.batches = []

    def take(self, now):
        batch = super().take(now)
        if batch:
            self.batches.append(batch)
        return batch


def request(id, output=100, prompt=50, arrival=0.0):
    return Request(str(id), "chatglm-6b", prompt, LengthQuantiles.of((float(output),) * 6, cap=1024), arrival, 1e9)


def policy_with(*requests, **testbed):
    return filled(ServedScheduler(Testbed(**testbed)), *requests)


def planned_memory(batch):
    reserved = max(planned_tokens(one, MEMORY_LEVEL) for one in batch)
    return len(batch) * (max(one.prompt_tokens for one in batch) + reserved)


def answer(*requests, tokens=100, seconds=5.0):
    return [Job(one, tokens) for one in requests], BatchRun(seconds, tokens, failed=False)


def test_every_request_is_answered_once_in_batches_that_fit_the_memory():
    past = [
        PastRow(app="a", prompt=f"p{i}", input_tokens=20 + i % 90, output_tokens=10 + 7 * (i % 9) + 400 * (i % 8 == 0))
        for i in range(100)
    ]
    jobs = poisson_jobs(with_lengths(samples(past), Knowledge.NOISY), rate=25.0, count=400)
    testbed = Testbed()
    policy = Recording(testbed)
    result = run_static(policy, jobs, testbed)
    assert sorted(int(one.job.request.id) for one in result.done) == list(range(400))
    assert max(map(len, policy.batches)) > 10
    assert all(planned_memory(batch) <= testbed.kv_capacity_tokens for batch in policy.batches if len(batch) > 1)


def test_a_free_engine_takes_the_request_at_once_and_others_wait_until_one_is_free():
    first, *waiting = [request(i) for i in range(4)]
    policy = policy_with(first, *waiting, engines=1)
    assert taken(policy) == [["0"]]
    policy.finish(*answer(first), now=5.0)
    assert taken(policy) == [["1", "2", "3"]]


def test_halves_of_a_failed_batch_take_no_other_request():
    first, *others = [request(i) for i in range(5)]
    policy = policy_with(first, *others, engines=1)
    policy.take(0.0)
    policy.finish(*answer(first), now=5.0)
    policy.arrive(request("new", arrival=6.0))
    policy.out_of_memory(policy.take(6.0), now=7.0)
    halves = []
    for second in (8.0, 9.0, 10.0):
        batch = policy.take(second)
        halves.append(sorted(ids(batch)))
        policy.finish(*answer(*batch), now=second)
    assert sorted(halves) == [["1", "2"], ["3", "4"], ["new"]]


def test_a_request_that_the_scheduler_drops_is_an_error():
    expired = Request("late", "chatglm-6b", 5, LengthQuantiles.of((5.0,) * 6), 0.0, deadline_s=1.0)
    policy = policy_with(request("first"), expired, engines=1)
    with pytest.raises(RuntimeError, match="late"):
        policy.arrive(request("second", arrival=2.0))
