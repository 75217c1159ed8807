"""Padded batches: their simulated times, and two ways to form them from rows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from backends.simulator.engine import Sequence as Request
from backends.simulator.engine import StaticEngine, StepTime
from bench.reality.fit import Sample
from bench.reality.rows import Row

UNBOUNDED_TOKENS = 10**9


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """One batch that the real loop ran.

    Attributes:
        kind: how the batch was formed.
        size: number of sequences.
        prompt_tokens: length of the padded prompts.
        generated_tokens: length of the longest answer.
        useful_tokens: tokens of all answers without padding.
        seconds: duration.
    """

    kind: str
    size: int
    prompt_tokens: int
    generated_tokens: int
    useful_tokens: int
    seconds: float

    def sample(self) -> Sample:
        """Return the work of its passes: the first prefills the padded prompts, and each reads the whole KV cache.

        >>> MeasuredBatch("mixed", 2, 10, 3, 4, 1.0).sample()
        Sample(steps=3, running=6, kv_tokens=72, prefill_tokens=20, seconds=1.0)
        """
        passes = self.generated_tokens
        kv_tokens = self.size * (passes * self.prompt_tokens + passes * (passes + 1) // 2)
        return Sample(passes, self.size * passes, kv_tokens, self.size * self.prompt_tokens, self.seconds)

    def simulated_s(self, step_time: StepTime) -> float:
        """Return the seconds that the simulated static engine needs for the batch."""
        engine = StaticEngine(step_time, UNBOUNDED_TOKENS, max_batch_size=self.size)
        for number in range(self.size):
            engine.submit(Request(number, self.prompt_tokens, self.generated_tokens, self.generated_tokens))
        seconds = 0.0
        while engine.running or engine.waiting:
            seconds += engine.step().duration_s
        return seconds


def homogeneous(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Form batches of answers with similar lengths."""
    return _cut(sorted(rows, key=lambda row: (row.output_tokens, len(row.prompt))), size)


def mixed(rows: Sequence[Row], size: int, seed: int) -> list[list[Row]]:
    """Form batches in random order."""
    return _cut(random.Random(seed).sample(rows, len(rows)), size)


def throughput(batches: Sequence[MeasuredBatch], step_time: StepTime | None = None) -> float:
    """Return the useful tokens per second of batches: measured, or simulated if a step time is given."""
    seconds = sum(batch.seconds if step_time is None else batch.simulated_s(step_time) for batch in batches)
    return sum(batch.useful_tokens for batch in batches) / seconds


def _cut(rows: Sequence[Row], size: int) -> list[list[Row]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
