"""Figures of a simulated run."""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from statistics import fmean, median

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.simulation.run import RequestTrace, SimulationResult

Floats = NDArray[np.float64]


class SimulationReport(msgspec.Struct, frozen=True):
    """Figures over the requests that were answered. Times are end to end, in seconds.

    Attributes:
        policy: name of the policy.
        n: requests that were answered.
        refused: requests whose prompt no engine can hold.
        dropped: requests that found the queue full, or waited too long.
        mean_s: mean time; `p50_s`, `p90_s` and `p99_s` are its quantiles.
        ttft_mean_s: mean time to the first token.
        short_p50_s: median time of answers that are shorter than the workload's median.
        norm_ms_per_tok: mean of time over output tokens.
        req_per_s: answers a second until the last arrival. Answers that end later do not count.
        tok_per_s: output tokens a second until the last arrival.
        makespan_s: time until the last answer ended.
        preemptions: sequences that lost their KV memory.
        kv_util: mean share of KV memory in use, over all engines and the whole run.
        kv_util_waiting: the same while requests waited, in the gateway's queue or in an engine; 0 if none waited.
        waiting_share: share of the engines' time during which requests waited.
        max_response_ratio: largest time over service time.
        retry_room: share of drops after whose Retry-After the queue had room.
        retry_passed: share of drops within whose Retry-After as many requests left the queue as were in it.
        retry_ratio: median of Retry-After over the time until that many had left.
        retry_after_mean_s: mean Retry-After of the drops.
        accepted_queue_p99_s: 0.99-quantile of the queue time.
    """

    policy: str
    n: int
    refused: int
    dropped: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    ttft_mean_s: float
    short_p50_s: float
    norm_ms_per_tok: float
    req_per_s: float
    tok_per_s: float
    makespan_s: float
    preemptions: int
    kv_util: float
    kv_util_waiting: float
    waiting_share: float
    max_response_ratio: float
    accepted_queue_p99_s: float
    retry_after_mean_s: float | None
    retry_room: float | None
    retry_passed: float | None
    retry_ratio: float | None


@dataclass(frozen=True, slots=True)
class RetryAccuracy:
    """How right the Retry-After of dropped requests was; every field is None without drops.

    Attributes:
        mean_s: mean Retry-After.
        room: share of drops after whose Retry-After the queue had room, although other clients did not wait.
        passed: share of drops within whose Retry-After as many requests left the queue as were in it.
        ratio: median of Retry-After over the time until that many had left. An unbiased estimate has 1.
    """

    mean_s: float | None = None
    room: float | None = None
    passed: float | None = None
    ratio: float | None = None


def report(policy: str, result: SimulationResult, max_queue: int | None = None) -> SimulationReport:
    """Compute the figures of one run.

    Args:
        policy: name of the policy.
        result: everything that happened in the run.
        max_queue: bound of the queue, for whether a dropped request would have found room later.

    Raises:
        ValueError: no request was answered.
    """
    done = [trace for trace in result.requests if trace.answered]
    if not done:
        raise ValueError("no request was answered")
    dropped = [trace for trace in result.requests if trace.dropped_s < inf]
    e2e, service = e2e_s(done), np.array([trace.finished_s - trace.dispatched_s for trace in done])
    queued = np.array([trace.dispatched_s - trace.arrival.arrival_s for trace in done])
    finished = np.array([trace.finished_s for trace in done])
    tokens = np.array([trace.generated for trace in done])
    window_s = result.window_s or result.end_s
    in_window = result.tokens_in_window if result.window_s else float(tokens.sum())
    p50, p90, p99 = np.quantile(e2e, (0.5, 0.9, 0.99)).tolist()
    retry = retry_accuracy(dropped, result, max_queue)
    return SimulationReport(
        policy=policy,
        n=len(done),
        refused=len(result.requests) - len(done) - len(dropped),
        dropped=len(dropped),
        mean_s=float(e2e.mean()),
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        ttft_mean_s=fmean(trace.first_token_s - trace.arrival.arrival_s for trace in done),
        short_p50_s=float(np.median(e2e[tokens < short_tokens(result.requests)])),
        norm_ms_per_tok=float(1000 * (e2e / tokens).mean()),
        req_per_s=float((finished <= window_s).sum() / window_s),
        tok_per_s=in_window / window_s,
        makespan_s=result.end_s,
        preemptions=sum(backend.preemptions for backend in result.fleet),
        **_occupancy(result),
        max_response_ratio=float((e2e / service).max()),
        accepted_queue_p99_s=float(np.quantile(queued, 0.99)),
        retry_after_mean_s=retry.mean_s,
        retry_room=retry.room,
        retry_passed=retry.passed,
        retry_ratio=retry.ratio,
    )


def e2e_s(done: list[RequestTrace]) -> Floats:
    """Return (n,) times from arrival to the last token."""
    return np.array([trace.finished_s - trace.arrival.arrival_s for trace in done])


def short_tokens(requests: list[RequestTrace]) -> float:
    """Return the length below which an answer is short: the median, or one more if no answer is shorter."""
    tokens = [trace.arrival.output_tokens for trace in requests]
    middle = median(tokens)
    return middle if min(tokens) < middle else middle + 1


def _occupancy(result: SimulationResult) -> dict[str, float]:
    fleet = result.fleet
    capacity = sum(backend.kv_capacity_tokens for backend in fleet) / len(fleet)
    waited_s = sum(backend.usage.waiting_seconds for backend in fleet)
    waited = sum(backend.usage.waiting_token_seconds for backend in fleet)
    used = sum(backend.usage.token_seconds for backend in fleet)
    return {
        "kv_util": used / (len(fleet) * result.end_s * capacity),
        "kv_util_waiting": waited / (waited_s * capacity) if waited_s > 0 else 0.0,
        "waiting_share": waited_s / (len(fleet) * result.end_s),
    }


def retry_accuracy(dropped: list[RequestTrace], result: SimulationResult, max_queue: int | None) -> RetryAccuracy:
    """Compare each drop's Retry-After with what the queue did in that time.

    Args:
        dropped: the requests that were dropped.
        result: everything that happened in the run.
        max_queue: bound of the queue; without one nothing can be compared.
    """
    if not dropped or max_queue is None:
        return RetryAccuracy()
    changed_s = [at_s for at_s, _ in result.depths]
    left_s = sorted(trace.dispatched_s for trace in result.requests if trace.dispatched_s < inf)
    room = [_depth(result, changed_s, trace.dropped_s + trace.retry_after_s) < max_queue for trace in dropped]
    ratios = []
    for trace in dropped:
        last = bisect_right(left_s, trace.dropped_s) + _depth(result, changed_s, trace.dropped_s) - 1
        needed_s = left_s[last] - trace.dropped_s if 0 <= last < len(left_s) else inf
        ratios.append(trace.retry_after_s / needed_s if needed_s > 0.0 else inf)
    return RetryAccuracy(
        mean_s=fmean(trace.retry_after_s for trace in dropped),
        room=fmean(room),
        passed=fmean(ratio >= 1.0 for ratio in ratios),
        ratio=median(ratios),
    )


def _depth(result: SimulationResult, changed_s: list[float], at_s: float) -> int:
    """Return the requests in the queue at a time; 0 before the first change."""
    index = bisect_right(changed_s, at_s) - 1
    return result.depths[index][1] if index >= 0 else 0
