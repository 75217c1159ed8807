"""What goes into an engine, what comes out of a step, and what the engine notes in between."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

SequenceId = int | str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One prompt and the answer that it will get.

    `output_tokens` is the answer's true length, which the engine uses only to know when to stop; it stops at
    `max_new_tokens` if that comes first. Lower `priority` goes first where the engine heeds it. Sequences of one
    `batch` share a static batch with nobody else; None mixes.
    """

    id: SequenceId
    prompt_tokens: int
    output_tokens: int
    max_new_tokens: int
    priority: int = 0
    arrival_s: float = 0.0
    batch: SequenceId | None = None

    def __post_init__(self) -> None:
        if min(self.prompt_tokens, self.output_tokens, self.max_new_tokens) < 1:
            raise ValueError(f"sequence {self.id!r}: prompt, output and max_new_tokens must be at least 1")

    @property
    def answer_tokens(self) -> int:
        """Tokens that will be generated."""
        return min(self.output_tokens, self.max_new_tokens)

    @property
    def final_tokens(self) -> int:
        """Tokens of prompt and answer together."""
        return self.prompt_tokens + self.answer_tokens


class SequenceTooLongError(ValueError):
    """The sequence cannot fit the KV memory even when it runs alone."""

    def __init__(self, sequence: Sequence, capacity_tokens: int) -> None:
        super().__init__(f"sequence {sequence.id!r} does not fit {capacity_tokens} tokens of KV memory")


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step did. The tokens are there when `duration_s` has passed.

    `emitted` got one token each; for those in `first` it was the first one, for those in `finished` the last. A static
    engine emits nothing until a whole batch is in `finished`. `preempted` went back to the queue; `failed` are lost,
    out of memory. `kv_used_tokens` is the memory in use during the step, where those that end in it still have theirs.
    """

    duration_s: float
    emitted: Seq[SequenceId] = ()
    first: Seq[SequenceId] = ()
    finished: Seq[SequenceId] = ()
    preempted: Seq[SequenceId] = ()
    failed: Seq[SequenceId] = ()
    kv_used_tokens: int = 0


class SequenceState:
    """A sequence inside an engine.

    `tokens` is the prompt and what was generated; the KV of the first `computed` of them is in memory, which holds
    `held` tokens. The last generated token has no KV until the next step reads it; `chunk` is what that step computes.
    """

    __slots__ = ("chunk", "computed", "final_tokens", "held", "id", "order", "prompt_tokens", "sequence", "tokens")

    def __init__(self, sequence: Sequence, order: int) -> None:
        self.sequence = sequence
        self.order = order
        self.id = sequence.id  # this and the counts are read for every token: not through the sequence
        self.prompt_tokens = sequence.prompt_tokens
        self.tokens = sequence.prompt_tokens
        self.final_tokens = sequence.final_tokens
        self.computed = 0
        self.held = 0
        self.chunk = 0

    @property
    def rank(self) -> tuple[int, float, int]:
        """Place under the 'priority' policy: the lowest goes first and is preempted last."""
        return (self.sequence.priority, self.sequence.arrival_s, self.order)
