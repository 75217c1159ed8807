"""Runs trials, in this process or in several, and keeps of each what tables and pictures show."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import msgspec
import numpy as np

from bench.continuous.grid import Section, Trial, chunks
from gateway.simulation.experiment import Workload, simulate
from gateway.simulation.report import SimulationReport, e2e_s, report
from gateway.simulation.run import Outcome

LEVELS = 200
"""Points of a distribution that a picture shows."""

SERIES_BINS = 120


class Curves(msgspec.Struct, frozen=True):
    """What pictures show of a run: times end to end at even levels, and the fleet's KV occupancy over time."""

    e2e_s: list[float]
    time_s: list[float]
    occupancy: list[float]


class Tried(msgspec.Struct, frozen=True):
    """A trial's result."""

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
) -> list[Tried]:
    """Run all trials.

    Args:
        workloads: each with its trials.
        jobs: processes; with 1 everything runs in this one.
        on_done: told of every trial that is done.
    """
    for workload, trials in workloads:
        for trial in trials:
            workload.saturation(trial.conditions.count or 0)  # once, and not again in every process
    pieces = [(workload, piece) for workload, trials in workloads for piece in chunks(trials)]
    pieces.sort(key=lambda piece: -piece[1][0].conditions.engines)
    order = {(workload.name, trial): n for workload, trials in workloads for n, trial in enumerate(trials)}
    ranks = {workload.name: n for n, (workload, _) in enumerate(workloads)}
    found: list[tuple[int, int, Tried]] = []
    for (workload, piece), results in _run_pieces(pieces, jobs):
        for trial, tried in zip(piece, results, strict=True):
            found.append((ranks[workload.name], order[workload.name, trial], tried))
            on_done()
    return [tried for *_, tried in sorted(found, key=lambda one: one[:2])]


Piece = tuple[Workload, list[Trial]]


def _run_pieces(pieces: Sequence[Piece], jobs: int) -> Iterator[tuple[Piece, Sequence[Tried]]]:
    """Yield each piece with its results as they come."""
    if jobs == 1:
        for workload, piece in pieces:
            for trial in piece:
                yield (workload, [trial]), [run_trial(workload, trial)]
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        running = {pool.submit(run_piece, *piece): piece for piece in pieces}
        for future in as_completed(running):
            yield running[future], future.result()


def run_piece(workload: Workload, trials: list[Trial]) -> list[Tried]:
    """Run trials one after the other."""
    return [run_trial(workload, trial) for trial in trials]


def run_trial(workload: Workload, trial: Trial) -> Tried:
    """Run one trial."""
    conditions = trial.conditions
    outcome = simulate(workload, trial.contender, conditions)
    return Tried(
        workload=workload.name,
        section=trial.section,
        engines=conditions.engines,
        load=conditions.load or 0.0,
        policy=str(trial.contender),
        variant=trial.variant,
        requests=len(outcome.flights),
        report=report(str(trial.contender), outcome, conditions.max_queue),
        curves=_curves(outcome),
    )


def _curves(outcome: Outcome) -> Curves:
    done = [flight for flight in outcome.flights if flight.answered]
    levels = np.linspace(0.0, 1.0, LEVELS + 1)
    at_s, used = np.array(outcome.occupancy).T
    edges = np.linspace(0.0, at_s[-1], SERIES_BINS + 1)
    capacity = sum(backend.kv_capacity_tokens for backend in outcome.fleet)
    mean_used = np.diff(np.interp(edges, at_s, used)) / max(edges[1], 1e-9)
    return Curves(
        np.quantile(e2e_s(done), levels).tolist(),
        (edges[:-1] + edges[1] / 2).tolist(),
        (mean_used / capacity).tolist(),
    )
