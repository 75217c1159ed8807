"""What a simulation showed."""

from statistics import fmean, median

import msgspec
import numpy as np
from numpy.typing import NDArray

from gateway.simulation.retries import retry_truth
from gateway.simulation.run import Outcome, RequestTrace

Floats = NDArray[np.float64]


class SimulationReport(msgspec.Struct, frozen=True):
    """Times are end to end in seconds, over the requests that were answered.

    Attributes:
        policy: who decided.
        n: requests that were answered.
        refused: requests that no engine can hold.
        dropped: requests that found the queue full, or waited too long.
        mean_s: mean time, and its quantiles.
        ttft_mean_s: mean time to the first token.
        short_p50_s: median time of answers shorter than the workload's median.
        norm_ms_per_tok: mean of time over output tokens.
        req_per_s: answers a second until the last arrival; what drains later is not counted.
        tok_per_s: output tokens a second until then.
        makespan_s: until the last answer ended.
        preemptions: sequences that lost their KV memory.
        kv_util: mean share of KV memory in use, over all engines and the whole run.
        kv_util_waiting: the same while requests waited, in the gateway's queue or an engine's; 0 where none did.
        waiting_share: share of the engines' time in which requests waited.
        max_response_ratio: the largest time over service time.
        retry_room: share of drops after whose retry time the queue had room.
        retry_passed: share of drops within whose retry time as many had left the queue as were in it.
        retry_ratio: median of the retry time over the time until so many had left.
        retry_after_mean_s: mean time that drops were told to wait.
        accepted_queue_p99_s: 0.99-quantile of the time in the queue.
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


def report(policy: str, outcome: Outcome, max_queue: int | None = None) -> SimulationReport:
    """Sum up one run.

    Args:
        policy: its name.
        outcome: of the run.
        max_queue: bound of the queue, which tells whether a dropped request would have found room later.

    Raises:
        ValueError: nothing was answered.
    """
    done = [flight for flight in outcome.flights if flight.answered]
    if not done:
        raise ValueError("no request was answered")
    dropped = [flight for flight in outcome.flights if flight.dropped_s < np.inf]
    e2e, service = e2e_s(done), np.array([flight.finished_s - flight.dispatched_s for flight in done])
    queued = np.array([flight.dispatched_s - flight.arrival.arrival_s for flight in done])
    finished = np.array([flight.finished_s for flight in done])
    tokens = np.array([flight.generated for flight in done])
    window_s = outcome.window_s or outcome.end_s
    in_window = outcome.tokens_in_window if outcome.window_s else float(tokens.sum())
    p50, p90, p99 = np.quantile(e2e, (0.5, 0.9, 0.99)).tolist()
    truth = retry_truth(dropped, outcome, max_queue)
    return SimulationReport(
        policy=policy,
        n=len(done),
        refused=len(outcome.flights) - len(done) - len(dropped),
        dropped=len(dropped),
        mean_s=float(e2e.mean()),
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        ttft_mean_s=fmean(flight.first_token_s - flight.arrival.arrival_s for flight in done),
        short_p50_s=float(np.median(e2e[tokens < short_tokens(outcome.flights)])),
        norm_ms_per_tok=float(1000 * (e2e / tokens).mean()),
        req_per_s=float((finished <= window_s).sum() / window_s),
        tok_per_s=in_window / window_s,
        makespan_s=outcome.end_s,
        preemptions=sum(backend.preemptions for backend in outcome.fleet),
        **_occupancy(outcome),
        max_response_ratio=float((e2e / service).max()),
        accepted_queue_p99_s=float(np.quantile(queued, 0.99)),
        retry_after_mean_s=truth.mean_s,
        retry_room=truth.room,
        retry_passed=truth.passed,
        retry_ratio=truth.ratio,
    )


def e2e_s(done: list[RequestTrace]) -> Floats:
    """Return (n,) times from arrival to the last token."""
    return np.array([flight.finished_s - flight.arrival.arrival_s for flight in done])


def short_tokens(flights: list[RequestTrace]) -> float:
    """Return the length under which an answer counts as short: the median, or just over it if none is shorter."""
    tokens = [flight.arrival.output_tokens for flight in flights]
    middle = median(tokens)
    return middle if min(tokens) < middle else middle + 1


def _occupancy(outcome: Outcome) -> dict[str, float]:
    fleet = outcome.fleet
    capacity = sum(backend.kv_capacity_tokens for backend in fleet) / len(fleet)
    waited_s = sum(backend.usage.waiting_seconds for backend in fleet)
    waited = sum(backend.usage.waiting_token_seconds for backend in fleet)
    used = sum(backend.usage.token_seconds for backend in fleet)
    return {
        "kv_util": used / (len(fleet) * outcome.end_s * capacity),
        "kv_util_waiting": waited / (waited_s * capacity) if waited_s > 0 else 0.0,
        "waiting_share": waited_s / (len(fleet) * outcome.end_s),
    }
