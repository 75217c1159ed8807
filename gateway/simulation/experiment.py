"""One simulated run: a workload, the conditions it runs under, and the policy that schedules it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from backends.simulator.config import EngineConfig
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import QueueLimits
from gateway.simulation.core import UNBOUNDED, build_core
from gateway.simulation.fleet import SCRAPE_INTERVAL_S, ScrapeModel, SimulatedBackend
from gateway.simulation.lengths import ForecastLengths, LearnedLengths, Lengths, RandomLengths, ScaledLengths
from gateway.simulation.run import QUEUE_TIMEOUT_S, Simulation, SimulationResult
from gateway.simulation.saturation import Saturation, saturation
from gateway.simulation.times import Pattern
from gateway.simulation.workload import Arrival, arrivals
from gateway.training.rows import PastRow

ESTIMATE_REQUESTS = 1500
"""Requests for a first estimate of the saturation. Answers differ so much that its error is about 8 %."""

BACKLOG = 6000
"""Most requests that a saturation is measured with. A larger workload is sampled evenly."""


@dataclass(frozen=True, slots=True)
class SimulatedPolicy:
    """A scheduling policy by its name.

    >>> str(SimulatedPolicy("hrrn")), str(SimulatedPolicy("hrrn", alpha=0.55))
    ('hrrn', 'hrrn:0.55')

    Attributes:
        name: one of `gateway.simulation.core.NAMES`.
        alpha: exponent of the service time in the response ratio.
    """

    name: str
    alpha: float = 1.0

    def __str__(self) -> str:
        return self.name if self.alpha == 1.0 else f"{self.name}:{self.alpha:g}"


@dataclass(slots=True)
class Workload:
    """Past requests to simulate, and the kind of engine to simulate them on.

    Args:
        name: title in tables.
        rows: past requests, each with an answer.
        config: settings of every engine.
        forecasts: predicted length of each row's answer. `trained` lengths need them.
        progress_tokens: the scheduler gets a progress message each time that an answer has grown by this many tokens.
    """

    name: str
    rows: Sequence[PastRow]
    config: EngineConfig
    forecasts: Sequence[LengthQuantiles] | None = None
    progress_tokens: int = PROGRESS_TOKENS
    _saturations: dict[int, Saturation] = field(default_factory=dict)

    def saturation(self, count: int = ESTIMATE_REQUESTS) -> Saturation:
        """Return what one engine sustains of the first `count` requests. Each count is measured once."""
        if count not in self._saturations:
            backlog = arrivals(self.rows, count=count, rate=1.0, seed=0)
            self._saturations[count] = saturation(backlog[:: -(-count // BACKLOG)], self.config)
        return self._saturations[count]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a policy is tried under.

    Attributes:
        load: arrival rate as a share of what the engines sustain at saturation; None uses `rate`.
        rate: requests a second, if `load` is None; None keeps the rows' own times.
        engines: number of engines.
        lengths: where predicted lengths come from: `trained`, `learned`, `true`, `random`, or a factor of the true
            length such as `10x` or `0.1x`.
        pattern: how arrivals are spread; None follows the rows' times if they have any, and is Poisson otherwise.
        count: number of requests; None sends each row once.
        seed: for the draw of rows and for the gaps between arrivals.
        scrape_interval_s: seconds between two scrapes of the engines.
        frozen_from_s: from this time on, every scrape returns the same metrics.
        blind: scrapes return no metrics.
        max_queue: most requests that may wait; None sets no limit.
        queue_timeout_s: longest time that a request may wait.
    """

    load: float | None = 1.2
    rate: float | None = None
    engines: int = 2
    lengths: str = "trained"
    pattern: Pattern | None = None
    count: int | None = None
    seed: int = 0
    scrape_interval_s: float = SCRAPE_INTERVAL_S
    frozen_from_s: float | None = None
    blind: bool = False
    max_queue: int | None = None
    queue_timeout_s: float = QUEUE_TIMEOUT_S


def simulate(
    workload: Workload,
    policy: SimulatedPolicy,
    conditions: Conditions,
    on_finish: Callable[[], None] = lambda: None,
) -> SimulationResult:
    """Run the workload and return everything that happened.

    Args:
        workload: what arrives, and on which engines it runs.
        policy: schedules the requests.
        conditions: load, number of engines, predicted lengths and faults.
        on_finish: called once for each request that was answered, dropped or refused.

    Raises:
        ValueError: the policy, the lengths or the arrivals that the conditions ask for do not exist.
    """
    arriving = arrivals_at(workload, conditions)
    limits = UNBOUNDED if conditions.max_queue is None else QueueLimits(conditions.max_queue, UNBOUNDED.max_tokens)
    core = build_core(policy.name, policy.alpha, limits)
    fleet = [SimulatedBackend(f"gpu-{i}", workload.config, workload.progress_tokens) for i in range(conditions.engines)]
    scrapes = ScrapeModel(conditions.scrape_interval_s, blind=conditions.blind)
    if conditions.frozen_from_s is not None:
        scrapes.frozen_from_s = conditions.frozen_from_s
    lengths = lengths_named(conditions.lengths, workload, conditions.seed)
    return Simulation(core, lengths, fleet, scrapes, on_finish, conditions.queue_timeout_s).run(arriving)


def arrivals_at(workload: Workload, conditions: Conditions) -> list[Arrival]:
    """Return the arrivals. They are the same for every policy."""
    count = conditions.count or len(workload.rows)
    rate = conditions.rate
    if conditions.load is not None:
        rate = conditions.load * conditions.engines * workload.saturation(count).req_per_s
    return arrivals(workload.rows, count=count, rate=rate, seed=conditions.seed, pattern=conditions.pattern)


def lengths_named(name: str, workload: Workload, seed: int = 0) -> Lengths:
    """Return the source of predicted lengths that a name stands for.

    Raises:
        ValueError: the name is unknown, or it is `trained` and the workload has no forecasts.
    """
    if name == "learned":
        return LearnedLengths()
    if name == "true":
        return ScaledLengths(1.0)
    if name == "random":
        return RandomLengths([row.output_tokens for row in workload.rows], seed)
    if name == "trained":
        if workload.forecasts is None:
            raise ValueError("lengths: 'trained' needs a workload with forecasts of a trained predictor")
        return ForecastLengths(workload.forecasts)
    if name.endswith("x") and _is_factor(name[:-1]):
        return ScaledLengths(float(name[:-1]))
    raise ValueError(
        f"lengths: {name!r} is unknown; use trained, learned, true, random, or a factor such as 10x or 0.1x"
    )


def _is_factor(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
