"""What a simulation showed."""

from statistics import fmean

import msgspec
import numpy as np

from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.run import Flight


class SimulationReport(msgspec.Struct, frozen=True):
    """Times end to end in seconds, over the requests that were answered.

    `norm_ms_per_tok`: mean of E2E over output tokens. `kv_util`: mean share of KV memory in use while engines worked.
    `max_response_ratio`: the largest E2E over service time. `refused`: requests that no engine can hold.
    """

    policy: str
    n: int
    refused: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    ttft_mean_s: float
    norm_ms_per_tok: float
    req_per_s: float
    tok_per_s: float
    preemptions: int
    kv_util: float
    max_response_ratio: float


def report(policy: str, flights: list[Flight], fleet: list[SimulatedBackend]) -> SimulationReport:
    """Sum up one run.

    Raises:
        ValueError: nothing was answered.
    """
    done = [flight for flight in flights if flight.answered]
    if not done:
        raise ValueError("no request was answered")
    e2e = np.array([flight.finished_s - flight.arrival.arrival_s for flight in done])
    service = np.array([flight.finished_s - flight.dispatched_s for flight in done])
    tokens = np.array([flight.generated for flight in done])
    seconds = max(flight.finished_s for flight in done) - min(flight.arrival.arrival_s for flight in done)
    p50, p90, p99 = np.quantile(e2e, (0.5, 0.9, 0.99)).tolist()
    return SimulationReport(
        policy=policy,
        n=len(done),
        refused=len(flights) - len(done),
        mean_s=float(e2e.mean()),
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        ttft_mean_s=fmean(flight.first_token_s - flight.arrival.arrival_s for flight in done),
        norm_ms_per_tok=float(1000 * (e2e / tokens).mean()),
        req_per_s=len(done) / seconds,
        tok_per_s=float(tokens.sum() / seconds),
        preemptions=sum(backend.preemptions for backend in fleet),
        kv_util=fmean(backend.occupancy for backend in fleet),
        max_response_ratio=float((e2e / service).max()),
    )
