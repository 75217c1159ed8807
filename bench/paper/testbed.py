"""The paper's engines: ChatGLM-6B on seven V100s, one padded batch at a time on each.

A batch's run is computed in closed form, which gives what `StaticEngine` gives step by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.simulator.engine import PRESETS, StepTime
from gateway.scheduling.batch_time import StepSumTime
from gateway.scheduling.messages import Request
from gateway.scheduling.step_time import StepTimePrior

ENGINES = 7
MODEL = "chatglm-6b"
LONGEST_TOKENS = 1024
"""Of a prompt, and of an answer; longer answers are cut, longer prompts are not sent."""

_PRESET = PRESETS["chatglm-6b-v100"]
_FP16_BYTES, _BYTES_PER_S = 12.4e9, 900e9


@dataclass(frozen=True, slots=True)
class Job:
    """A request with its true length, which only the engine knows."""

    request: Request
    output_tokens: int


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What became of a batch: `steps` is the number of tokens that each row got before it ended or failed."""

    seconds: float
    steps: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Testbed:
    """Engines of one kind."""

    engines: int = ENGINES
    kv_capacity_tokens: int = _PRESET.kv_tokens
    step_time: StepTime = _PRESET.step_time

    __test__ = False  # no test case, though pytest thinks so by its name

    @property
    def batch_time(self) -> StepSumTime:
        """What a scheduler that was told the step time knows of a batch's time."""
        return StepSumTime(StepTimePrior(self.step_time.a, self.step_time.b, self.step_time.c, self.step_time.d))

    def quantised(self) -> "Testbed":
        """The same with weights of 4 bits, as VSQ has them.

        A step reads 4-bit weights, writes them out as fp16 and reads those: V100s have no 4-bit arithmetic, and the
        model's own kernels go through fp16. Each step takes 1.4 times as long for that. The memory that it frees is
        not modelled beyond the larger batch that the paper allows it.
        """
        extra_s = (_FP16_BYTES / 4 + _FP16_BYTES) / _BYTES_PER_S
        return replace(self, step_time=replace(self.step_time, a=self.step_time.a + extra_s))

    def run(self, batch: Sequence[Job]) -> BatchRun:
        """Run a batch until its longest answer is there, or until the memory is full.

        Raises:
            ValueError: a single request does not fit.
        """
        size = len(batch)
        prompt_tokens = max(job.request.prompt_tokens for job in batch)
        output_tokens = max(job.output_tokens for job in batch)
        room = self.kv_capacity_tokens // size - prompt_tokens
        failed = output_tokens > room
        if failed and size == 1:
            raise ValueError(f"request {batch[0].request.id} does not fit the memory")
        steps = max(1, room + 1) if failed else output_tokens
        return BatchRun(self.batch_time(size, prompt_tokens, steps), steps, failed)
