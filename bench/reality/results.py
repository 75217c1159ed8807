"""What the experiment gives back, and the figures that are drawn from it."""

from statistics import median

import msgspec

from backends.simulator.engine import StepTime
from bench.reality.fit import Sample, errors
from bench.reality.summary import Figures, Ratios, medians, ratios, relative_errors
from gateway.simulation.core import DIRECT

COMPARED = ("mean_s", "p50_s", "ttft_mean_s", "tok_per_s", "loaded_tok_per_s", "req_per_s")


class Plan(msgspec.Struct, frozen=True):
    """What is run.

    `rate` is in requests a second; 0 stands for `load` times what the calibrated simulator says saturates the engine.
    `foreign_cores` is what others may take of the machine in a run that counts.
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
    """The step model `a + b·running + c·kv_tokens + d·prefill_tokens`, in seconds, and how well it fits its samples.

    `total_error` is that of the sum of all samples' times.
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
        """The model."""
        return StepTime(self.a, self.b, self.c, self.d)


class Run(msgspec.Struct, frozen=True):
    """One load under one policy, on the engine and in the simulator.

    `steps` is what vLLM counted of its steps; `simulated_at_speed` has the step times scaled so that these steps would
    have taken as long as they did. `late_s` is the longest that the client was behind its plan, `load_average` the
    machine's just before.
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
        """Return the run with the simulator's side."""
        return msgspec.structs.replace(self, simulated=simulated, simulated_at_speed=at_speed)


class Experiment(msgspec.Struct, frozen=True):
    """All runs, in their order."""

    plan: Plan
    calibration: Calibration
    rate: float
    runs: list[Run]

    def of(self, policy: str) -> list[Run]:
        """Return a policy's runs, by repetition."""
        return [run for run in self.runs if run.policy == policy]


class Comparison(msgspec.Struct, frozen=True):
    """One policy over all repetitions: medians, the simulator's relative errors, and the ratios to direct.

    `errors` are medians of the pairs' relative errors, `worst` the ones that are farthest from 0. `steps_error` is the
    step model's for all steps that vLLM counted in a run, `at_speed_errors` are what is left without it.
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
    """Draw one comparison a policy, direct first."""
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
