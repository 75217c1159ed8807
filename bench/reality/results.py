"""Results of the experiment, and the comparison of measured and simulated runs."""

from statistics import median

import msgspec

from backends.simulator.engine import StepTime
from bench.reality.fit import Sample, errors
from bench.reality.summary import Figures, Ratios, medians, ratios, relative_errors
from gateway.simulation.core import DIRECT

COMPARED = ("mean_s", "p50_s", "ttft_mean_s", "tok_per_s", "loaded_tok_per_s", "req_per_s")


class Plan(msgspec.Struct, frozen=True):
    """What to run.

    Attributes:
        policies: policies of the gateway.
        requests: requests of each run.
        repetitions: runs of each policy.
        rate: requests per second; 0 means `load` times the rate that saturates the calibrated simulator.
        load: see `rate`.
        past: rows of history.
        seed: of rows and arrival times.
        foreign_cores: cores that other processes may use in a valid run.
    """

    policies: tuple[str, ...]
    requests: int
    repetitions: int
    rate: float
    load: float
    past: int
    seed: int
    foreign_cores: float


class Calibration(msgspec.Struct, frozen=True):
    """The step model `a + b·running + c·kv_tokens + d·prefill_tokens`, in seconds, and its errors on its samples.

    `total_error` is the relative error of the sum of all sample times.
    """

    a: float
    b: float
    c: float
    d: float
    samples: int
    steps: int
    mean_abs_error: float
    total_error: float

    @property
    def step_time(self) -> StepTime:
        """The step model."""
        return StepTime(self.a, self.b, self.c, self.d)


class Run(msgspec.Struct, frozen=True):
    """One load under one policy, on the engine and in the simulator.

    Attributes:
        policy: `direct`, or a policy of the gateway.
        repetition: index of the run.
        measured: figures of the engine.
        steps: work and duration of the run's steps, from vLLM's counters.
        simulated: figures of the simulator.
        simulated_at_speed: the same with step times scaled to the duration of `steps`.
        late_s: longest delay of the client behind its plan.
        foreign_cores: cores that other processes used.
        load_average: load average of the machine before the run.
    """

    policy: str
    repetition: int
    measured: Figures
    steps: Sample
    simulated: Figures | None
    simulated_at_speed: Figures | None
    late_s: float
    foreign_cores: float
    load_average: float

    def with_simulated(self, simulated: Figures, at_speed: Figures) -> "Run":
        """Return the run with the figures of the simulator."""
        return msgspec.structs.replace(self, simulated=simulated, simulated_at_speed=at_speed)


class Experiment(msgspec.Struct, frozen=True):
    """The plan, the calibration and all runs in their order."""

    plan: Plan
    calibration: Calibration
    rate: float
    runs: list[Run]

    def of(self, policy: str) -> list[Run]:
        """Return the runs of a policy by repetition."""
        return [run for run in self.runs if run.policy == policy]


class Comparison(msgspec.Struct, frozen=True):
    """One policy over all repetitions: medians, relative errors of the simulator, and ratios to direct.

    Attributes:
        policy: `direct`, or a policy of the gateway.
        measured: medians of the engine's figures.
        simulated: medians of the simulator's figures.
        errors: medians of the relative errors of all runs.
        worst: the relative errors that are farthest from 0.
        steps_error: relative error of the step model over all steps of a run.
        at_speed_errors: the errors that remain without `steps_error`.
        to_direct: measured ratios to direct.
        to_direct_simulated: simulated ratios to direct.
        preemptions_to_direct: ratio of preemptions; None if direct has none.
    """

    policy: str
    measured: dict[str, float]
    simulated: dict[str, float]
    errors: dict[str, float]
    worst: dict[str, float]
    steps_error: float
    at_speed_errors: dict[str, float]
    to_direct: dict[str, float]
    to_direct_simulated: dict[str, float]
    preemptions_to_direct: float | None


def compare(experiment: Experiment) -> list[Comparison]:
    """Return one comparison for each policy, direct first."""
    policies = dict.fromkeys(run.policy for run in experiment.runs)
    return [_comparison(experiment, policy) for policy in policies]


def _comparison(experiment: Experiment, policy: str) -> Comparison:
    runs, direct = experiment.of(policy), experiment.of(DIRECT)
    measured, simulated = [run.measured for run in runs], [_simulated(run) for run in runs]
    at_speed = [run.simulated_at_speed or _simulated(run) for run in runs]
    off, off_at_speed = _errors(simulated, measured), _errors(at_speed, measured)
    base_preemptions = sum(run.measured.preemptions for run in direct)
    return Comparison(
        policy=policy,
        measured=medians(measured),
        simulated=medians(simulated),
        errors={name: median(values) for name, values in off.items()},
        worst={name: max(values, key=abs) for name, values in off.items()},
        steps_error=median(errors([run.steps for run in runs], experiment.calibration.step_time).tolist()),
        at_speed_errors={name: median(values) for name, values in off_at_speed.items()},
        to_direct=medians(_over(measured, [run.measured for run in direct])),
        to_direct_simulated=medians(_over(simulated, [_simulated(run) for run in direct])),
        preemptions_to_direct=(
            sum(figure.preemptions for figure in measured) / base_preemptions if base_preemptions else None
        ),
    )


def _errors(simulated: list[Figures], measured: list[Figures]) -> dict[str, list[float]]:
    return {
        name: relative_errors([getattr(f, name) for f in simulated], [getattr(f, name) for f in measured])
        for name in COMPARED
    }


def _over(runs: list[Figures], bases: list[Figures]) -> list[Ratios]:
    return [ratios(run, base) for run, base in zip(runs, bases, strict=True)]


def _simulated(run: Run) -> Figures:
    if run.simulated is None:
        raise ValueError(f"{run.policy} {run.repetition} was not simulated")
    return run.simulated
