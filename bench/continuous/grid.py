"""What is tried: which contenders, on how many engines, under which loads and faults.

Everything is tried on the smallest fleet. Larger ones cost in proportion and show the same but for how well work is
spread, so they are tried below saturation and above it, or above it alone, unless all is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.simulation.core import DIRECT, ROUND_ROBIN
from gateway.simulation.experiment import CLAIRVOYANT, Conditions, SimulatedPolicy, Workload
from gateway.simulation.times import Pattern

ENGINES = (2, 8, 32)
LOADS = (0.7, 1.0, 1.2, 1.5)
TAIL_ALPHA = 0.55

BURST_LOAD = 0.7
"""In the mean; in the burst it is ten times as high, far over what the engines can do."""

OVERLOAD, OVERLOAD_S, OVERLOAD_QUEUE_S = 10.0, 600.0, 60.0
"""Ten times what the engines can do, for ten minutes; the queue holds what they can do in one."""

QUEUE_OF = "queue of "

FAULT_LOAD, FROZEN_FROM_S, SELDOM_S = 1.2, 10.0, 30.0

MOST_RUNS = 8
"""Engines times trials that one process is given at once."""


class Section(StrEnum):
    """Which question a trial belongs to."""

    LOADS = "loads"
    BURST = "burst"
    FAULTS = "faults"
    OVERLOAD = "overload"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run; `variant` says what is out of the ordinary in it."""

    section: Section
    contender: SimulatedPolicy
    conditions: Conditions
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """What the user asked for.

    Attributes:
        engines: sizes of fleets.
        loads: shares of saturation.
        policies: as `SimulatedPolicy` reads them.
        requests: in each run; None is enough of them, see `Workload.requests`.
        full: whether larger fleets are tried under all loads, too.
        quick: whether half as many requests will do, without faults and overload.
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
    def contenders(self) -> list[SimulatedPolicy]:
        """Those asked for, the one that all are compared with first."""
        names = self.policies or default_policies(quick=self.quick)
        return [SimulatedPolicy.parse(name) for name in dict.fromkeys([DIRECT, *names])]

    def trials(self, workload: Workload) -> list[Trial]:
        """Return all trials of a workload."""
        trials: list[Trial] = []
        fleets = sorted(set(self.engines))
        for engines in fleets:
            count = self.requests or workload.requests(engines) // (2 if self.quick else 1)
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
        return [Trial(section, contender, conditions) for contender in self.contenders]

    def _loads(self, rank: int) -> list[float]:
        """Loads for a fleet by its rank in size: all, one on either side of saturation, or one above it."""
        loads = sorted(set(self.loads))
        if self.full or rank == 0:
            return loads
        over = [load for load in loads if load > 1.0][:1]
        return over if rank > 1 and over else [*[load for load in loads if load < 1.0][-1:], *over] or loads

    def _faults(self, base: Conditions) -> list[Trial]:
        """Our own without what it relies on."""
        at = replace(base, load=FAULT_LOAD)
        variants = {f"lengths {lengths}": replace(at, lengths=lengths) for lengths in ("random", "10x", "0.1x")}
        variants |= {
            "metrics frozen": replace(at, frozen_from_s=FROZEN_FROM_S),
            "no metrics": replace(at, blind=True),
            f"a look in {SELDOM_S:g} s": replace(at, looks_s=SELDOM_S),
        }
        direct = Trial(Section.FAULTS, SimulatedPolicy(DIRECT), at)
        return [direct, *(Trial(Section.FAULTS, self._ours, conditions, name) for name, conditions in variants.items())]

    def _overload(self, workload: Workload, base: Conditions) -> list[Trial]:
        """Ten times too much, with a bounded queue; without one there is nothing to compare."""
        per_s = base.engines * workload.saturation().req_per_s
        at = replace(
            base,
            load=OVERLOAD,
            count=self.requests or round(OVERLOAD * OVERLOAD_S * per_s),
            pattern=Pattern.POISSON,
            max_queue=max(1, round(OVERLOAD_QUEUE_S * per_s)),
        )
        return [Trial(Section.OVERLOAD, self._ours, at, f"{QUEUE_OF}{at.max_queue:,}")]

    @property
    def _ours(self) -> SimulatedPolicy:
        """The first that has a queue and no truth to go by, HRRN if it is among them."""
        ours = [one for one in self.contenders if one.policy not in {DIRECT, ROUND_ROBIN} and not one.clairvoyant]
        return next(
            (one for one in ours if one == SimulatedPolicy("hrrn")), ours[0] if ours else SimulatedPolicy("hrrn")
        )


def default_policies(*, quick: bool) -> list[str]:
    """Return the contenders where none are named."""
    if quick:
        return [DIRECT, "fcfs", "hrrn", "magnus", f"hrrn{CLAIRVOYANT}"]
    return [DIRECT, ROUND_ROBIN, "fcfs", "sjf", "hrrn", f"hrrn:{TAIL_ALPHA}", "magnus", f"hrrn{CLAIRVOYANT}"]


def chunks(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Cut trials into pieces of like size, the most expensive first."""
    pieces: dict[int, list[list[Trial]]] = {}
    for trial in trials:
        engines = trial.conditions.engines
        of_size = pieces.setdefault(engines, [[]])
        if engines * len(of_size[-1]) >= MOST_RUNS:
            of_size.append([])
        of_size[-1].append(trial)
    return [piece for engines in sorted(pieces, reverse=True) for piece in pieces[engines]]
