"""The paper's engines: ChatGLM-6B on seven V100s, one padded batch at a time on each.

The time of a batch is computed in closed form. A test compares it with `StaticEngine`, which runs step by step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.simulator.engine import PRESETS, StepTime
from gateway.scheduling.batch_time import StepSumTime
from gateway.scheduling.messages import Request
from gateway.scheduling.step_time import StepTimePrior

ENGINES = 7
MODEL = "chatglm-6b"
MAX_TOKENS = 1024
"""Most tokens of a prompt, and of an answer. Longer prompts are left out, and longer answers are cut."""

_PRESET = PRESETS["chatglm-6b-v100"]
_FP16_BYTES, _BYTES_PER_S = 12.4e9, 900e9


@dataclass(frozen=True, slots=True)
class Job:
    """A request with its true length, which only the engine knows."""

    request: Request
    output_tokens: int


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What happened to a batch.

    Attributes:
        seconds: until it ended or failed.
        steps: tokens that each row got until then.
        failed: the engine ran out of memory.
    """

    seconds: float
    steps: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Testbed:
    """Engines of one kind."""

    engines: int = ENGINES
    kv_capacity_tokens: int = _PRESET.kv_tokens
    step_time: StepTime = _PRESET.step_time

    __test__ = False  # pytest takes it for a test case because of its name

    @property
    def batch_time(self) -> StepSumTime:
        """The time of a batch for a scheduler that knows the step time."""
        return StepSumTime(StepTimePrior(self.step_time.a, self.step_time.b, self.step_time.c, self.step_time.d))

    def quantised(self) -> "Testbed":
        """Return the testbed with 4-bit weights, as VSQ uses them.

        V100s have no 4-bit arithmetic, so a step reads 4-bit weights, writes them as fp16 and reads those. This makes
        each step 1.4 times as long. The freed memory is only modelled by the larger batch that the paper uses.
        """
        extra_s = (_FP16_BYTES / 4 + _FP16_BYTES) / _BYTES_PER_S
        return replace(self, step_time=replace(self.step_time, a=self.step_time.a + extra_s))

    def run(self, batch: Sequence[Job]) -> BatchRun:
        """Run a batch until its longest answer ends, or until the memory is full.

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
