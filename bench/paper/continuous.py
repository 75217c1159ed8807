"""CCB, the paper's conservative continuous batching: few requests at once, so that all of them always fit."""

import heapq
from collections.abc import Sequence

from backends.simulator.engine import ContinuousEngine, FcfsQueue, ReservedKV, StepResult
from backends.simulator.engine import Sequence as EngineSequence
from bench.paper.run import Done, RunResult
from bench.paper.testbed import MAX_TOKENS, Job, Testbed


def run_continuous(jobs: Sequence[Job], testbed: Testbed, *, at_once: int) -> RunResult:
    """Run until every request is answered. Requests go to the first engine with a free place, in order of arrival.

    Args:
        jobs: the requests in the order of their arrivals.
        testbed: the engines.
        at_once: most requests on one engine.
    """
    by_id = {job.request.id: job for job in jobs}
    engines = [
        ContinuousEngine(testbed.step_time, ReservedKV(testbed.kv_capacity_tokens), FcfsQueue(), max_num_seqs=at_once)
        for _ in range(testbed.engines)
    ]
    steps: list[tuple[float, int, StepResult]] = []
    busy: set[int] = set()
    done: list[Done] = []
    waiting = 0  # index of the first job that no engine has yet
    now = 0.0
    while True:
        for index, engine in enumerate(engines):
            while index not in busy and engine.running + engine.waiting < at_once and _has_arrived(jobs, waiting, now):
                engine.submit(_sequence(jobs[waiting]))
                waiting += 1
            if index not in busy and (engine.running or engine.waiting):
                step = engine.step()
                heapq.heappush(steps, (now + step.duration_s, index, step))
                busy.add(index)
        if steps and (waiting == len(jobs) or len(busy) == len(engines) or steps[0][0] <= _arrival(jobs[waiting])):
            now, index, step = heapq.heappop(steps)
            busy.discard(index)
            done += [Done(by_id[str(id)], now, by_id[str(id)].output_tokens) for id in step.finished]
        elif waiting < len(jobs):
            now = max(now, _arrival(jobs[waiting]))
        else:
            return RunResult(done)


def _arrival(job: Job) -> float:
    return job.request.arrival_s


def _has_arrived(jobs: Sequence[Job], number: int, now: float) -> bool:
    return number < len(jobs) and _arrival(jobs[number]) <= now


def _sequence(job: Job) -> EngineSequence:
    return EngineSequence(job.request.id, job.request.prompt_tokens, job.output_tokens, MAX_TOKENS)
