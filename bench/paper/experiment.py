"""The comparison: every policy at every rate, on the same arrivals."""

from collections.abc import Callable, Iterator, Sequence

from bench.paper.continuous import run_continuous
from bench.paper.jobs import Sample, poisson_jobs
from bench.paper.policies import Vanilla, WmaBatches
from bench.paper.report import PaperReport, report
from bench.paper.run import RunResult, run_static
from bench.paper.served import ServedScheduler
from bench.paper.testbed import Job, Testbed
from gateway.scheduling.batch_time import KnnBatchTime
from gateway.scheduling.static_batch import MEMORY_LEVEL

VANILLA_SIZE, QUANTISED_SIZE = 7, 10
"""Batch sizes of the paper: what fits if every request has the maximum length."""

RATES = (4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 30.0, 40.0)
WINDOW_S = 600.0
"""How long requests arrive, unless their number is given."""

BASELINE, OURS = "VS", "ours"

Run = Callable[[Sequence[Job], Testbed], RunResult]


def _vs(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(Vanilla(VANILLA_SIZE), jobs, testbed)


def _vsq(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(Vanilla(QUANTISED_SIZE), jobs, testbed.quantised())


def _ccb(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_continuous(jobs, testbed, at_once=VANILLA_SIZE)


def _glp(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(WmaBatches(testbed.kv_capacity_tokens, size=VANILLA_SIZE), jobs, testbed)


def _abp(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(WmaBatches(testbed.kv_capacity_tokens), jobs, testbed)


def _magnus(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(WmaBatches(testbed.kv_capacity_tokens, KnnBatchTime(testbed.batch_time)), jobs, testbed)


def _magnus_q(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    estimator = KnnBatchTime(testbed.batch_time)
    return run_static(WmaBatches(testbed.kv_capacity_tokens, estimator, memory_level=MEMORY_LEVEL), jobs, testbed)


def _ours(jobs: Sequence[Job], testbed: Testbed) -> RunResult:
    return run_static(ServedScheduler(testbed), jobs, testbed)


POLICIES: dict[str, Run] = {
    BASELINE: _vs,
    "VSQ": _vsq,
    "CCB": _ccb,
    "GLP": _glp,
    "ABP": _abp,
    "Magnus": _magnus,
    "Magnus+q": _magnus_q,
    OURS: _ours,
}
"""In the paper's order. `Magnus+q` is Magnus with our memory test. It shows how much that test contributes."""


def compare(
    taken: Sequence[Sample], rate: float, *, count: int | None = None, seed: int = 0, testbed: Testbed | None = None
) -> Iterator[PaperReport]:
    """Run every policy at one rate, and yield the figures of each.

    Args:
        taken: samples to draw requests from.
        rate: requests a second.
        count: number of requests; None takes as many as arrive in `WINDOW_S`.
        seed: of the draw and the gaps.
        testbed: the engines; None takes the paper's.
    """
    jobs = poisson_jobs(taken, rate=rate, count=count or round(rate * WINDOW_S), seed=seed)
    return (report(name, rate, run(jobs, testbed or Testbed())) for name, run in POLICIES.items())
