"""Runs trials in this process or in several, and keeps what tables and pictures show of each."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context

import msgspec
import numpy as np

from bench.continuous.grid import Section, Trial, chunks
from gateway.simulation.experiment import Workload, simulate
from gateway.simulation.report import SimulationReport, e2e_s, report
from gateway.simulation.run import SimulationResult

LEVELS = 200
"""Points of a distribution that a picture shows."""

SERIES_BINS = 120

Piece = tuple[Workload, list[Trial]]
"""Trials of one workload that one process runs."""


class Curves(msgspec.Struct, frozen=True):
    """What pictures show of a run.

    Attributes:
        e2e_s: times end to end at even levels.
        time_s: middles of even intervals of time.
        occupancy: share of the fleet's KV memory in use in each interval.
    """

    e2e_s: list[float]
    time_s: list[float]
    occupancy: list[float]


class TrialResult(msgspec.Struct, frozen=True):
    """The result of one trial."""

    workload: str
    section: Section
    engines: int
    load: float
    policy: str
    variant: str
    requests: int
    report: SimulationReport
    curves: Curves


def run_trials(
    workloads: Sequence[tuple[Workload, list[Trial]]], jobs: int, on_done: Callable[[], None]
) -> list[TrialResult]:
    """Run all trials and return their results in the order of the trials.

    Args:
        workloads: each with its trials.
        jobs: number of processes; with 1, all trials run in this one.
        on_done: called after each trial.
    """
    for workload, trials in workloads:
        for trial in trials:
            workload.saturation(trial.conditions.count or len(workload.rows))  # here, and not again in each process
    pieces = [(workload, piece) for workload, trials in workloads for piece in chunks(trials)]
    pieces.sort(key=lambda piece: -piece[1][0].conditions.engines)
    order = {(workload.name, trial): n for workload, trials in workloads for n, trial in enumerate(trials)}
    ranks = {workload.name: n for n, (workload, _) in enumerate(workloads)}
    found: list[tuple[int, int, TrialResult]] = []
    for (workload, piece), results in _run_pieces(pieces, jobs):
        for trial, result in zip(piece, results, strict=True):
            found.append((ranks[workload.name], order[workload.name, trial], result))
            on_done()
    return [result for *_, result in sorted(found, key=lambda one: one[:2])]


def _run_pieces(pieces: Sequence[Piece], jobs: int) -> Iterator[tuple[Piece, Sequence[TrialResult]]]:
    """Yield each piece with its results, as soon as it has ended."""
    if jobs == 1:
        for workload, piece in pieces:
            for trial in piece:
                yield (workload, [trial]), [run_trial(workload, trial)]
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running = {pool.submit(run_piece, *piece): piece for piece in pieces}
        for future in as_completed(running):
            yield running[future], future.result()


def run_piece(workload: Workload, trials: list[Trial]) -> list[TrialResult]:
    """Run trials one after the other."""
    return [run_trial(workload, trial) for trial in trials]


def run_trial(workload: Workload, trial: Trial) -> TrialResult:
    """Run one trial."""
    candidate, conditions = trial.candidate, trial.conditions
    if candidate.true_lengths:
        conditions = replace(conditions, lengths="true")
    result = simulate(workload, candidate.policy, conditions)
    return TrialResult(
        workload=workload.name,
        section=trial.section,
        engines=conditions.engines,
        load=conditions.load or 0.0,
        policy=str(candidate),
        variant=trial.variant,
        requests=len(result.requests),
        report=report(str(candidate), result, conditions.max_queue),
        curves=_curves(result),
    )


def _curves(result: SimulationResult) -> Curves:
    done = [trace for trace in result.requests if trace.answered]
    levels = np.linspace(0.0, 1.0, LEVELS + 1)
    at_s, used = np.array(result.occupancy).T
    edges = np.linspace(0.0, at_s[-1], SERIES_BINS + 1)
    capacity = sum(backend.kv_capacity_tokens for backend in result.fleet)
    mean_used = np.diff(np.interp(edges, at_s, used)) / max(edges[1], 1e-9)
    return Curves(
        np.quantile(e2e_s(done), levels).tolist(),
        (edges[:-1] + edges[1] / 2).tolist(),
        (mean_used / capacity).tolist(),
    )
