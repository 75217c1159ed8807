"""The trials: which policies run, on how many engines, under which loads and faults.

Everything is tried on the smallest fleet. A larger fleet costs in proportion, and only shows in addition how well work
is spread. So larger fleets are tried at one load on each side of saturation, or only above it, unless `full` is set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from gateway.simulation.core import DIRECT, ROUND_ROBIN, build_core
from gateway.simulation.experiment import Conditions, SimulatedPolicy, Workload
from gateway.simulation.times import Pattern

ENGINES = (2, 8, 32)
LOADS = (0.7, 1.0, 1.2, 1.5)
TAIL_ALPHA = 0.55
TRUE_LENGTHS = "@true"

MIN_REQUESTS_PER_ENGINE = 750
MIN_SERVICE_TIMES = 40
"""Arrivals last at least this many mean service times at saturation, because overload shows only after several."""

BURST_LOAD = 0.7
"""Mean load. In the burst the load is ten times as high, far more than the engines sustain."""

OVERLOAD, OVERLOAD_S, OVERLOAD_QUEUE_S = 10.0, 600.0, 60.0
"""Ten times what the engines sustain, for ten minutes. The queue holds what they sustain in one minute."""

QUEUE_OF = "queue of "

FAULT_LOAD, FROZEN_FROM_S, RARE_SCRAPES_S = 1.2, 10.0, 30.0

MAX_RUNS = 8
"""Most engines times trials that one process gets at once."""


class Section(StrEnum):
    """The question that a trial answers."""

    LOADS = "loads"
    BURST = "burst"
    FAULTS = "faults"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A policy to compare, and whether it gets the true lengths in place of predicted ones.

    >>> Candidate.parse("hrrn:0.55@true")
    Candidate(policy=SimulatedPolicy(name='hrrn', alpha=0.55), true_lengths=True)
    >>> str(Candidate.parse("hrrn:0.55@true"))
    'hrrn:0.55@true'
    """

    policy: SimulatedPolicy
    true_lengths: bool = False

    @classmethod
    def parse(cls, text: str) -> "Candidate":
        """Read `policy` or `policy:alpha`, followed by `@true` for true lengths.

        Raises:
            ValueError: the policy is unknown, or its alpha is not a number above 0.
        """
        policy, at, lengths = text.partition("@")
        name, _, alpha = policy.partition(":")
        if at + lengths not in {"", TRUE_LENGTHS}:
            raise ValueError(f"policy: {text!r} may end in {TRUE_LENGTHS}, and in nothing else that begins with @")
        try:
            candidate = cls(SimulatedPolicy(name, float(alpha) if alpha else 1.0), true_lengths=bool(lengths))
        except ValueError as error:
            raise ValueError(f"policy: alpha {alpha!r} in {text!r} is not a number") from error
        build_core(candidate.policy.name, candidate.policy.alpha)
        return candidate

    def __str__(self) -> str:
        return f"{self.policy}{TRUE_LENGTHS if self.true_lengths else ''}"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run. `variant` names what differs from an ordinary run."""

    section: Section
    candidate: Candidate
    conditions: Conditions
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """The trials that the user asks for.

    Attributes:
        engines: sizes of fleets.
        loads: arrival rates as shares of saturation.
        policies: as `Candidate.parse` reads them.
        requests: number of requests in each run; None takes `steady_requests`.
        full: try every load on larger fleets too.
        quick: take half as many requests, and leave out faults and overload.
        seed: of all arrivals.
    """

    engines: Sequence[int] = ENGINES
    loads: Sequence[float] = LOADS
    policies: Sequence[str] = ()
    requests: int | None = None
    full: bool = False
    quick: bool = False
    seed: int = 0

    @property
    def candidates(self) -> list[Candidate]:
        """The policies to compare. The first one is the baseline."""
        names = self.policies or default_policies(quick=self.quick)
        return [Candidate.parse(name) for name in dict.fromkeys([DIRECT, *names])]

    def trials(self, workload: Workload) -> list[Trial]:
        """Return all trials of a workload."""
        trials: list[Trial] = []
        fleets = sorted(set(self.engines))
        for engines in fleets:
            count = self.requests or steady_requests(workload, engines) // (2 if self.quick else 1)
            base = Conditions(engines=engines, count=count, seed=self.seed)
            for load in self._loads(fleets.index(engines)):
                trials += self._all(Section.LOADS, replace(base, load=load))
            if self.full or engines == fleets[0]:
                trials += self._all(Section.BURST, replace(base, load=BURST_LOAD, pattern=Pattern.BURST))
            if engines == fleets[0] and not self.quick:
                trials += self._faults(base)
                trials += self._overload(workload, base)
        return trials

    def _all(self, section: Section, conditions: Conditions) -> list[Trial]:
        return [Trial(section, candidate, conditions) for candidate in self.candidates]

    def _loads(self, rank: int) -> list[float]:
        """Return the loads for a fleet by its rank in size: all, one on each side of saturation, or one above it."""
        loads = sorted(set(self.loads))
        if self.full or rank == 0:
            return loads
        over = [load for load in loads if load > 1.0][:1]
        return over if rank > 1 and over else [*[load for load in loads if load < 1.0][-1:], *over] or loads

    def _faults(self, base: Conditions) -> list[Trial]:
        """Return trials of the main candidate, each without one of the things that it relies on."""
        at = replace(base, load=FAULT_LOAD)
        variants = {f"lengths {lengths}": replace(at, lengths=lengths) for lengths in ("random", "10x", "0.1x")}
        variants |= {
            "metrics frozen": replace(at, frozen_from_s=FROZEN_FROM_S),
            "no metrics": replace(at, blind=True),
            f"a scrape in {RARE_SCRAPES_S:g} s": replace(at, scrape_interval_s=RARE_SCRAPES_S),
        }
        direct = Trial(Section.FAULTS, Candidate.parse(DIRECT), at)
        return [direct, *(Trial(Section.FAULTS, self._main, conditions, name) for name, conditions in variants.items())]

    def _overload(self, workload: Workload, base: Conditions) -> list[Trial]:
        """Return a trial with ten times too many requests and a bounded queue. Nothing is compared with it."""
        per_s = base.engines * workload.saturation().req_per_s
        at = replace(
            base,
            load=OVERLOAD,
            count=self.requests or round(OVERLOAD * OVERLOAD_S * per_s),
            pattern=Pattern.POISSON,
            max_queue=max(1, round(OVERLOAD_QUEUE_S * per_s)),
        )
        return [Trial(Section.OVERLOAD, self._main, at, f"{QUEUE_OF}{at.max_queue:,}")]

    @property
    def _main(self) -> Candidate:
        """The candidate for faults and overload: HRRN, or the first one with a queue and predicted lengths."""
        hrrn = Candidate.parse("hrrn")
        queued = [one for one in self.candidates if one.policy.name not in {DIRECT, ROUND_ROBIN}]
        predicting = [one for one in queued if not one.true_lengths]
        return hrrn if hrrn in predicting or not predicting else predicting[0]


def steady_requests(workload: Workload, engines: int) -> int:
    """Return how many requests are enough for a steady state, and for overload to show."""
    one = workload.saturation()
    return engines * max(MIN_REQUESTS_PER_ENGINE, ceil(MIN_SERVICE_TIMES * one.service_s * one.req_per_s))


def default_policies(*, quick: bool) -> list[str]:
    """Return the policies to compare if the user names none."""
    if quick:
        return [DIRECT, "fcfs", "hrrn", "magnus", f"hrrn{TRUE_LENGTHS}"]
    return [DIRECT, ROUND_ROBIN, "fcfs", "sjf", "hrrn", f"hrrn:{TAIL_ALPHA}", "magnus", f"hrrn{TRUE_LENGTHS}"]


def chunks(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Cut trials into pieces of similar cost, the most expensive first."""
    pieces: dict[int, list[list[Trial]]] = {}
    for trial in trials:
        engines = trial.conditions.engines
        of_size = pieces.setdefault(engines, [[]])
        if engines * len(of_size[-1]) >= MAX_RUNS:
            of_size.append([])
        of_size[-1].append(trial)
    return [piece for engines in sorted(pieces, reverse=True) for piece in pieces[engines]]
