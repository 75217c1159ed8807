"""Runs static engines in simulated time, batch by batch."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.paper.policies import BatchPolicy
from bench.paper.testbed import BatchRun, Job, Testbed
from gateway.scheduling.messages import Request


@dataclass(frozen=True, slots=True)
class Done:
    """One answer. `generated_tokens` includes the tokens that the batch generated after the answer's own end."""

    job: Job
    finished_s: float
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """What happened in one run.

    Attributes:
        done: all answers, in the order in which they ended.
        failures: batches that ran out of memory.
        batches: all batches; 0 for continuous batching.
    """

    done: list[Done]
    failures: int = 0
    batches: int = 0


@dataclass(slots=True, order=True)
class _Running:
    ends_s: float
    number: int
    batch: list[Request] = field(compare=False)
    run: BatchRun = field(compare=False)


def run_static(policy: BatchPolicy, jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    """Run until every request is answered.

    Args:
        policy: forms a batch whenever an engine is free.
        jobs: the requests in the order of their arrivals.
        testbed: the engines.
    """
    by_id = {job.request.id: job for job in jobs}
    running: list[_Running] = []
    done: list[Done] = []
    arrived = started = failures = 0
    while arrived < len(jobs) or running:
        if running and (arrived == len(jobs) or running[0].ends_s <= jobs[arrived].request.arrival_s):
            ended = heapq.heappop(running)
            now = ended.ends_s
            if ended.run.failed:
                failures += 1
                policy.out_of_memory(ended.batch, now)
            else:
                answered = [by_id[request.id] for request in ended.batch]
                done += [Done(job, now, ended.run.steps) for job in answered]
                policy.finish(answered, ended.run, now)
        else:
            now = jobs[arrived].request.arrival_s
            policy.arrive(jobs[arrived].request)
            arrived += 1
        while len(running) < testbed.engines and (batch := policy.take(now)):
            run = testbed.run([by_id[request.id] for request in batch])
            heapq.heappush(running, _Running(now + run.seconds, started, batch, run))
            started += 1
    return RunResult(done, failures, started)
