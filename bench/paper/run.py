"""A run of static engines, batch by batch."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.paper.policies import BatchPolicy
from bench.paper.testbed import BatchRun, Job, Testbed
from gateway.scheduling.messages import Request


@dataclass(frozen=True, slots=True)
class Done:
    """An answer's end. `generated_tokens` were computed for it, the valid ones and those after its end."""

    job: Job
    finished_s: float
    generated_tokens: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """All answers, in the order in which they came; and how many batches ran out of memory."""

    done: list[Done]
    failures: int = 0
    batches: int = 0


@dataclass(slots=True, order=True)
class _Running:
    ends_s: float
    number: int
    batch: list[Request] = field(compare=False)
    run: BatchRun = field(compare=False)


def run_static(policy: BatchPolicy, jobs: Sequence[Job], testbed: Testbed) -> Outcome:
    """Run until everything is answered.

    Args:
        policy: decides, whenever an engine is free.
        jobs: in the order of their arrivals.
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
    return Outcome(done, failures, started)
