"""The measurement: calibrate one engine, then run the same loads directly and through the gateway, in turn."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.simulator.engine import StepTime
from bench.load_client import LoadClient, load_client
from bench.reality import calibrate
from bench.reality.anchor import kv_read
from bench.reality.cores import model_on_own_core
from bench.reality.engine import CONTEXT_TOKENS, Counters, read_counters, vllm
from bench.reality.fit import Sample, errors, fit_step_time, scaled
from bench.reality.predict import forecast, saturation_rate, simulate
from bench.reality.quiet import ForeignLoad
from bench.reality.replay import MODEL, TIMEOUT_S, ReplayedAnswer, replay
from bench.reality.results import Calibration, Experiment, Plan, Run
from bench.reality.rows import Parts, Row, poisson_times
from bench.reality.summary import Timing, figures
from bench.warm_gateway import WarmGateway
from gateway.prediction.embedder import Embedder
from gateway.simulation.core import DIRECT
from gateway.simulation.lengths import Lengths

ATTEMPTS = 3

Progress = Callable[[str], None]


class MeasurementError(RuntimeError):
    """A run has no valid result."""


@dataclass(slots=True)
class Bench:
    """One experiment.

    Args:
        plan: what to run.
        parts: the rows; the engine counts their prompt tokens once it runs.
        folder: for temporary files.
        embedder: the gateway's.
        on_progress: called with a description of each step.
    """

    plan: Plan
    parts: Parts
    folder: Path
    embedder: Embedder
    on_progress: Progress

    async def run(self) -> Experiment:
        """Measure, simulate, and return both."""
        self.on_progress("starting vLLM")
        with vllm(self.folder, self.parts.measured) as engine, model_on_own_core(engine.process.pid) as own_core:
            self.on_progress("the model has a core to itself" if own_core else "all processes share the cores")
            async with load_client(TIMEOUT_S) as client:
                self.on_progress("counting prompts with the engine's tokenizer")
                parts = await self._counted(client, engine.url)
                samples = await calibrate.measure_steps(
                    client, engine.url, parts.calibration, lambda n: self.on_progress(f"calibrating: {n + 1} streams")
                )
                step_time = fit_step_time(samples)
                self.on_progress(f"{step_time}, {len(samples)} samples")
                rate = self.plan.rate or self.plan.load * saturation_rate(step_time, parts.measured)
                self.on_progress("importing history and training")
                gateway = WarmGateway(self.folder / "warm", engine.url)
                gateway.warm_up(map(_past_row, parts.past))
                runs = await self._measure(client, engine.url, gateway, parts, rate)
        self.on_progress("simulating the same runs")
        lengths = forecast(parts.past, parts.runs, self.embedder)
        runs = [self._simulated(run, step_time, parts, rate, lengths[run.repetition]) for run in runs]
        return Experiment(self.plan, _calibration(samples, step_time), rate, runs)

    async def _counted(self, client: LoadClient, url: str) -> Parts:
        past = await calibrate.count_prompts(client, url, self.parts.past)
        calibration = await calibrate.count_prompts(client, url, self.parts.calibration)
        runs = [await calibrate.count_prompts(client, url, run) for run in self.parts.runs]
        # The engine would cut an answer that exceeds its context.
        return Parts(past, _fitting(calibration), [_fitting(run) for run in runs])

    async def _measure(
        self, client: LoadClient, url: str, gateway: WarmGateway, parts: Parts, rate: float
    ) -> list[Run]:
        runs = []
        for repetition, rows in enumerate(parts.runs):
            times_s = poisson_times(len(rows), rate, self.plan.seed + repetition)
            for policy in (DIRECT, *self.plan.policies):
                run = await self._best_of(client, url, gateway, policy, repetition, rows, times_s)
                runs.append(run)
                shown = run.measured
                self.on_progress(
                    f"{policy} {repetition + 1}/{len(parts.runs)}: mean {shown.mean_s:.2f} s, p50 {shown.p50_s:.2f} s, "
                    f"{shown.tok_per_s:.0f} tokens/s, {shown.preemptions:.0f} preemptions"
                )
        return runs

    async def _best_of(
        self,
        client: LoadClient,
        url: str,
        gateway: WarmGateway,
        policy: str,
        repetition: int,
        rows: Sequence[Row],
        times_s: Sequence[float],
    ) -> Run:
        """Repeat the run until no other process disturbs it, `ATTEMPTS` times at most; return the least disturbed."""
        attempts = []
        for attempt in range(ATTEMPTS):
            name = f"{policy}-{repetition}-{attempt}"
            self.on_progress(f"{policy} {repetition + 1}/{len(self.parts.runs)}: {len(rows)} requests")
            if policy == DIRECT:
                run = await self._one(client, url, url, policy, repetition, rows, times_s)
            else:
                settings = {"MAGNUS_SCHEDULING_POLICY": policy}
                with gateway.copied(name) as copy, copy.serving(settings) as served:
                    run = await self._one(client, url, served.url, policy, repetition, rows, times_s)
            attempts.append(run)
            if run.foreign_cores <= self.plan.foreign_cores:
                break
            self.on_progress(f"{policy}: other processes used {run.foreign_cores:.2f} cores; repeating")
        return min(attempts, key=lambda run: run.foreign_cores)

    async def _one(
        self,
        client: LoadClient,
        engine_url: str,
        target_url: str,
        policy: str,
        repetition: int,
        rows: Sequence[Row],
        times_s: Sequence[float],
    ) -> Run:
        foreign = ForeignLoad(self.folder)
        before = await read_counters(client, engine_url)
        load_average = os.getloadavg()[0]
        foreign.start()
        loaded = before

        async def read_loaded() -> None:
            nonlocal loaded
            loaded = await read_counters(client, engine_url)

        answers = await replay(target_url, rows, times_s, read_loaded)
        cores = foreign.cores()
        _check(answers)
        timings = [_timing(answer) for answer in answers]
        counted = (await read_counters(client, engine_url)).since(before)
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


def _fitting(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.final_tokens < CONTEXT_TOKENS]


def _check(answers: Sequence[ReplayedAnswer]) -> None:
    """Check that every answer succeeded with the length of its row.

    Raises:
        MeasurementError: an answer failed or has another length. The message counts them and shows the first.
    """
    failed = [answer for answer in answers if answer.error is not None]
    if failed:
        raise MeasurementError(f"{len(failed)} of {len(answers)} requests failed: {failed[0].error}")
    wrong = [answer for answer in answers if answer.output_tokens != answer.row.output_tokens]
    if wrong:
        first = wrong[0]
        raise MeasurementError(
            f"{len(wrong)} of {len(answers)} answers differ in length from their rows: "
            f"{first.output_tokens} tokens instead of {first.row.output_tokens}"
        )


def _past_row(row: Row) -> dict[str, object]:
    tokens = {"input_tokens": row.prompt_tokens, "output_tokens": row.output_tokens}
    return {"app": row.app, "model": MODEL, "prompt": row.prompt, **tokens}


def _timing(answer: ReplayedAnswer) -> Timing:
    return Timing(answer.planned_s, answer.first_s, answer.done_s, answer.output_tokens)


def _steps(answers: Sequence[ReplayedAnswer], counted: Counters) -> Sample:
    """Return what all steps of a run computed. Each prefill, also one after a preemption, yields a token as well."""
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
