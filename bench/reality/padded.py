"""Padded batches: what the static model says of them, and how lengths are put together."""

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
    """One batch as the real loop ran it: padded prompt, longest answer, tokens that were asked for, and the time."""

    kind: str
    size: int
    prompt_tokens: int
    generated_tokens: int
    useful_tokens: int
    seconds: float

    def sample(self) -> Sample:
        """Return what its passes computed: the first prefills the padded prompts, each reads all KV there is by then.

        >>> MeasuredBatch("mixed", 2, 10, 3, 4, 1.0).sample()
        Sample(steps=3, running=6, kv_tokens=72, prefill_tokens=20, seconds=1.0)
        """
        passes = self.generated_tokens
        kv_tokens = self.size * (passes * self.prompt_tokens + passes * (passes + 1) // 2)
        return Sample(passes, self.size * passes, kv_tokens, self.size * self.prompt_tokens, self.seconds)

    def simulated_s(self, step_time: StepTime) -> float:
        """Return the seconds that the simulated static engine takes for it."""
        engine = StaticEngine(step_time, UNBOUNDED_TOKENS, max_batch_size=self.size)
        for number in range(self.size):
            engine.submit(Request(number, self.prompt_tokens, self.generated_tokens, self.generated_tokens))
        seconds = 0.0
        while engine.running or engine.waiting:
            seconds += engine.step().duration_s
        return seconds


def homogeneous(rows: Sequence[Row], size: int) -> list[list[Row]]:
    """Put answers of like length into batches."""
    return _cut(sorted(rows, key=lambda row: (row.output_tokens, len(row.prompt))), size)


def mixed(rows: Sequence[Row], size: int, seed: int) -> list[list[Row]]:
    """Put rows into batches as they come."""
    return _cut(random.Random(seed).sample(rows, len(rows)), size)


def throughput(batches: Sequence[MeasuredBatch], step_time: StepTime | None = None) -> float:
    """Return useful tokens a second over batches, measured or, with a step time, simulated."""
    seconds = sum(batch.seconds if step_time is None else batch.simulated_s(step_time) for batch in batches)
    return sum(batch.useful_tokens for batch in batches) / seconds


def _cut(rows: Sequence[Row], size: int) -> list[list[Row]]:
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
