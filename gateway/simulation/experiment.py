"""One run under given conditions: which workload, how much of it, on how many engines, decided how."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil

from backends.simulator.config import EngineConfig
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import QueueLimits
from gateway.simulation.core import UNBOUNDED, build_core
from gateway.simulation.fleet import SimulatedBackend
from gateway.simulation.lengths import ForecastLengths, LearnedLengths, Lengths, RandomLengths, ScaledLengths
from gateway.simulation.report import SimulationReport, report
from gateway.simulation.run import QUEUE_TIMEOUT_S, Outcome, Simulation
from gateway.simulation.saturation import Saturation, saturation
from gateway.simulation.scrapes import LOOK_S, ScrapeModel
from gateway.simulation.times import Pattern
from gateway.simulation.workload import Arrival, arrivals
from gateway.training.rows import PastRow

MIN_REQUESTS_PER_ENGINE = 750
MIN_SERVICE_TIMES = 40
"""Arrivals last at least so many mean service times, at saturation: overload shows only after several."""

ROUGHLY, BACKLOG = 1500, 6000
"""Requests by which saturation is measured: to know how many make a run, and those of a run, or an even sample of them.
Answers differ so widely that 1500 tell it to some 8 % only."""

CLAIRVOYANT = "@true"


@dataclass(frozen=True, slots=True)
class SimulatedPolicy:
    """Who decides, and by what lengths.

    >>> Contender.parse("hrrn:0.55@true")
    Contender(policy='hrrn', alpha=0.55, clairvoyant=True)
    """

    policy: str
    alpha: float = 1.0
    clairvoyant: bool = False

    @classmethod
    def parse(cls, text: str) -> "SimulatedPolicy":
        """Read `policy`, `policy:alpha`, either with `@true` for true lengths.

        Raises:
            ValueError: the policy or its alpha is none.
        """
        name, _, lengths = text.partition("@")
        policy, _, alpha = name.partition(":")
        if lengths not in {"", "true"}:
            raise ValueError(f"policy: {text!r} may end in {CLAIRVOYANT} and in no other such word")
        try:
            contender = cls(policy, float(alpha) if alpha else 1.0, clairvoyant=bool(lengths))
        except ValueError as error:
            raise ValueError(f"policy: {alpha!r} in {text!r} is no number") from error
        build_core(contender.policy, contender.alpha)
        return contender

    def __str__(self) -> str:
        alpha = "" if self.alpha == 1.0 else f":{self.alpha:g}"
        return f"{self.policy}{alpha}{CLAIRVOYANT if self.clairvoyant else ''}"


@dataclass(slots=True)
class Workload:
    """Rows to simulate on a kind of engine.

    Args:
        name: for tables.
        rows: to simulate, each with an answer.
        config: of every engine.
        forecasts: of each row, by the trained predictor; without them `trained` lengths are not to be had.
        progress_tokens: the core hears of an answer's growth every so many tokens.
    """

    name: str
    rows: Sequence[PastRow]
    config: EngineConfig
    forecasts: Sequence[LengthQuantiles] | None = None
    progress_tokens: int = PROGRESS_TOKENS
    _saturations: dict[int, Saturation] = field(default_factory=dict)

    @property
    def timed(self) -> bool:
        """Whether the rows have times."""
        return all(row.t is not None for row in self.rows)

    def saturation(self, count: int = ROUGHLY) -> Saturation:
        """Measure, once, what one engine sustains of the first `count` requests, by an even sample of them."""
        if count not in self._saturations:
            backlog = arrivals(self.rows, count=count, rate=1.0, seed=0)
            self._saturations[count] = saturation(backlog[:: -(-count // BACKLOG)], self.config)
        return self._saturations[count]

    def requests(self, engines: int) -> int:
        """Requests that are enough for a steady state, and for overload to show."""
        one = self.saturation()
        return engines * max(MIN_REQUESTS_PER_ENGINE, ceil(MIN_SERVICE_TIMES * one.service_s * one.req_per_s))


@dataclass(frozen=True, slots=True)
class Conditions:
    """Under what a contender is tried.

    Attributes:
        load: requests a second over what the engines can do at saturation; None takes the rate.
        rate: requests a second, if no load is given; None keeps the rows' times.
        engines: how many.
        lengths: `trained`, `learned`, `true`, `random`, or a factor of the truth such as `10x` or `0.1x`.
        pattern: of the arrivals; None follows the rows' times if they have any, and is Poisson otherwise.
        count: requests; None is enough of them, see `Workload.requests`.
        seed: of draw and gaps.
        looks_s: between two looks at the engines.
        frozen_from_s: looks show the same from then on.
        blind: looks show nothing.
        max_queue: requests that may wait; None bounds nothing.
        queue_timeout_s: how long.
    """

    load: float | None = 1.2
    rate: float | None = None
    engines: int = 2
    lengths: str = "trained"
    pattern: Pattern | None = None
    count: int | None = None
    seed: int = 0
    looks_s: float = LOOK_S
    frozen_from_s: float | None = None
    blind: bool = False
    max_queue: int | None = None
    queue_timeout_s: float = QUEUE_TIMEOUT_S


def run_once(workload: Workload, contender: SimulatedPolicy | str, conditions: Conditions) -> SimulationReport:
    """Run and report.

    Raises:
        ValueError: the contender or the conditions make no sense.
    """
    contender = SimulatedPolicy.parse(contender) if isinstance(contender, str) else contender
    return report(str(contender), simulate(workload, contender, conditions), conditions.max_queue)


def simulate(
    workload: Workload,
    contender: SimulatedPolicy,
    conditions: Conditions,
    on_progress: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run, and return all that happened; `on_progress` is told of every request that is over."""
    arriving = arrivals_at(workload, conditions)
    limits = UNBOUNDED if conditions.max_queue is None else QueueLimits(conditions.max_queue, UNBOUNDED.max_tokens)
    fleet = [SimulatedBackend(f"gpu-{i}", workload.config, workload.progress_tokens) for i in range(conditions.engines)]
    looks = ScrapeModel(conditions.looks_s, blind=conditions.blind)
    if conditions.frozen_from_s is not None:
        looks.frozen_from_s = conditions.frozen_from_s
    lengths = lengths_named("true" if contender.clairvoyant else conditions.lengths, workload, conditions.seed)
    core = build_core(contender.policy, contender.alpha, limits)
    return Simulation(core, lengths, fleet, looks, on_progress, conditions.queue_timeout_s).run(arriving)


def arrivals_at(workload: Workload, conditions: Conditions) -> list[Arrival]:
    """Return the arrivals, the same for every contender."""
    count = conditions.count or workload.requests(conditions.engines)
    rate = conditions.rate
    if conditions.load is not None:
        rate = conditions.load * conditions.engines * workload.saturation(count).req_per_s
    return arrivals(workload.rows, count=count, rate=rate, seed=conditions.seed, pattern=conditions.pattern)


def lengths_named(name: str, workload: Workload, seed: int = 0) -> Lengths:
    """Return who predicts.

    Raises:
        ValueError: nobody of that name does.
    """
    if name == "learned":
        return LearnedLengths()
    if name == "true":
        return ScaledLengths(1.0)
    if name == "random":
        return RandomLengths([row.output_tokens for row in workload.rows], seed)
    if name == "trained" and workload.forecasts is not None:
        return ForecastLengths(workload.forecasts)
    if name.endswith("x") and _is_factor(name[:-1]):
        return ScaledLengths(float(name[:-1]))
    raise ValueError(f"lengths: {name!r} is none of trained, learned, true, random, 10x, 0.1x, or nobody was trained")


def _is_factor(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
