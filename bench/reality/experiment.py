"""The measurement: one engine, calibrated, then the same loads direct and through the gateway, in turn."""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from backends.simulator.engine import StepTime
from bench.reality import calibrate
from bench.reality.anchor import kv_read
from bench.reality.client import Answer, replay, session
from bench.reality.cores import apart
from bench.reality.engine import CONTEXT_TOKENS, Counters, read_counters, vllm
from bench.reality.fit import Sample, errors, fit_step_time, scaled
from bench.reality.gateway import WarmGateway
from bench.reality.predict import forecast, saturation_rate, simulate
from bench.reality.quiet import ForeignLoad
from bench.reality.results import Calibration, Experiment, Plan, Run
from bench.reality.rows import Parts, Row, poisson_times
from bench.reality.summary import Timing, figures
from gateway.prediction.embedder import Embedder
from gateway.simulation.core import DIRECT
from gateway.simulation.lengths import Lengths

ATTEMPTS = 3
DRAIN_POLL_S = 0.2

Say = Callable[[str], None]


class MeasurementError(RuntimeError):
    """A run did not come to a result that counts."""


@dataclass(slots=True)
class Bench:
    """One experiment.

    Args:
        plan: what is run.
        parts: the rows; their prompts are counted when the engine is up.
        folder: for all that is written on the way.
        embedder: as the gateway's.
        say: told what is going on.
    """

    plan: Plan
    parts: Parts
    folder: Path
    embedder: Embedder
    say: Say

    async def run(self) -> Experiment:
        """Measure, simulate, and return both."""
        self.say("starting vLLM")
        with vllm(self.folder, self.parts.measured) as engine, apart(engine.process.pid) as alone:
            self.say("the model has a core to itself" if alone else "all share the cores")
            async with session() as http:
                self.say("counting prompts with the engine's tokenizer")
                parts = await self._counted(http, engine.url)
                samples = await calibrate.measure_steps(
                    http, engine.url, parts.calibration, lambda n: self.say(f"calibrating: {n + 1} streams")
                )
                step_time = fit_step_time(samples)
                self.say(f"{step_time}, {len(samples)} samples")
                rate = self.plan.rate or self.plan.load * saturation_rate(step_time, parts.measured)
                self.say("warming the gateway up: import and training")
                gateway = WarmGateway(self.folder, engine.url)
                gateway.warm_up(parts.past)
                runs = await self._measure(http, engine.url, gateway, parts, rate)
        self.say("simulating the same runs")
        lengths = forecast(parts.past, parts.runs, self.embedder)
        runs = [self._simulated(run, step_time, parts, rate, lengths[run.repetition]) for run in runs]
        return Experiment(self.plan, _calibration(samples, step_time), rate, runs)

    async def _counted(self, http: aiohttp.ClientSession, url: str) -> Parts:
        past = await calibrate.count_prompts(http, url, self.parts.past)
        calibration = await calibrate.count_prompts(http, url, self.parts.calibration)
        runs = [await calibrate.count_prompts(http, url, run) for run in self.parts.runs]
        # What is too long for the context would be cut by it, and is no answer of its true length.
        return Parts(past, _fitting(calibration), [_fitting(run) for run in runs])

    async def _measure(
        self, http: aiohttp.ClientSession, url: str, gateway: WarmGateway, parts: Parts, rate: float
    ) -> list[Run]:
        runs = []
        for repetition, rows in enumerate(parts.runs):
            times_s = poisson_times(len(rows), rate, self.plan.seed + repetition)
            for policy in (DIRECT, *self.plan.policies):
                run = await self._best_of(http, url, gateway, policy, repetition, rows, times_s)
                runs.append(run)
                shown = run.measured
                self.say(
                    f"{policy} {repetition + 1}/{len(parts.runs)}: mean {shown.mean_s:.2f} s, p50 {shown.p50_s:.2f} s, "
                    f"{shown.tok_per_s:.0f} tokens/s, {shown.preemptions:.0f} preemptions"
                )
        return runs

    async def _best_of(
        self,
        http: aiohttp.ClientSession,
        url: str,
        gateway: WarmGateway,
        policy: str,
        repetition: int,
        rows: Sequence[Row],
        times_s: Sequence[float],
    ) -> Run:
        """Run until nobody else was on the machine; of runs that were all disturbed, keep the least so."""
        attempts = []
        for attempt in range(ATTEMPTS):
            name = f"{policy}-{repetition}-{attempt}"
            self.say(f"{policy} {repetition + 1}/{len(self.parts.runs)}: {len(rows)} requests")
            if policy == DIRECT:
                run = await self._one(http, url, url, policy, repetition, rows, times_s)
            else:
                with gateway.serving(policy, name) as entrance:
                    run = await self._one(http, url, entrance, policy, repetition, rows, times_s)
            attempts.append(run)
            if run.foreign_cores <= self.plan.foreign_cores:
                break
            self.say(f"{policy}: others took {run.foreign_cores:.2f} cores; once more")
        return min(attempts, key=lambda run: run.foreign_cores)

    async def _one(
        self,
        http: aiohttp.ClientSession,
        engine_url: str,
        entrance: str,
        policy: str,
        repetition: int,
        rows: Sequence[Row],
        times_s: Sequence[float],
    ) -> Run:
        foreign = ForeignLoad(self.folder)
        before = await read_counters(http, engine_url)
        load_average = os.getloadavg()[0]
        foreign.start()
        loaded = before

        async def look() -> None:
            nonlocal loaded
            loaded = await read_counters(http, engine_url)

        answers = await replay(entrance, rows, times_s, look)
        cores = foreign.cores()
        _check(answers)
        timings = [_timing(answer) for answer in answers]
        counted = (await read_counters(http, engine_url)).since(before)
        return Run(
            policy=policy,
            repetition=repetition,
            measured=figures(timings, counted.preemptions, loaded.since(before).generated_tokens / times_s[-1]),
            steps=_steps(answers, counted),
            simulated=None,
            simulated_at_speed=None,
            late_s=max(answer.sent_s - answer.planned_s for answer in answers),
            foreign_cores=cores,
            load_average=load_average,
        )

    def _simulated(self, run: Run, step_time: StepTime, parts: Parts, rate: float, lengths: Lengths) -> Run:
        rows = parts.runs[run.repetition]
        times_s = poisson_times(len(rows), rate, self.plan.seed + run.repetition)
        speeds = (step_time, scaled(step_time, run.steps.seconds / run.steps.predicted_s(step_time)))
        return run.with_simulated(*(figures(*simulate(run.policy, speed, rows, times_s, lengths)) for speed in speeds))


def progress_line(text: str) -> None:
    """Replace the progress line on a terminal; write another one elsewhere."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
    else:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _fitting(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.final_tokens < CONTEXT_TOKENS]


def _check(answers: Sequence[Answer]) -> None:
    """Refuse a run in which an answer failed or has another length than its row says.

    Raises:
        MeasurementError: so it is; the message counts and shows one.
    """
    failed = [answer for answer in answers if answer.error is not None]
    if failed:
        raise MeasurementError(f"{len(failed)} of {len(answers)} requests failed: {failed[0].error}")
    wrong = [answer for answer in answers if answer.output_tokens != answer.row.output_tokens]
    if wrong:
        first = wrong[0]
        raise MeasurementError(
            f"{len(wrong)} of {len(answers)} answers have another length than their rows say: "
            f"{first.output_tokens} tokens for {first.row.output_tokens}"
        )


def _timing(answer: Answer) -> Timing:
    return Timing(answer.planned_s, answer.first_s, answer.done_s, answer.output_tokens)


def _steps(answers: Sequence[Answer], counted: Counters) -> Sample:
    """What all steps of a run computed; a prefill of a prompt, or of one that was preempted, gives a token too."""
    prefills = len(answers) + counted.preemptions
    return Sample(
        steps=counted.steps,
        running=counted.generated_tokens,
        kv_tokens=sum(kv_read(answer.prompt_tokens, 0, answer.output_tokens) for answer in answers),
        prefill_tokens=counted.computed_tokens - (counted.generated_tokens - prefills),
        seconds=max(answer.done_s for answer in answers) - min(answer.planned_s for answer in answers),
    )


def _calibration(samples: Sequence[Sample], step_time: StepTime) -> Calibration:
    off = errors(samples, step_time)
    seconds = sum(sample.seconds for sample in samples)
    return Calibration(
        a=step_time.a,
        b=step_time.b,
        c=step_time.c,
        d=step_time.d,
        samples=len(samples),
        steps=sum(sample.steps for sample in samples),
        mean_abs_error=float(np.abs(off).mean()),
        total_error=sum(sample.predicted_s(step_time) for sample in samples) / seconds - 1.0,
    )
