"""The input of an engine, the result of a step, and an engine's state of one sequence."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

SequenceId = int | str


@dataclass(frozen=True, slots=True)
class Sequence:
    """One prompt and its answer.

    Attributes:
        output_tokens: the answer's true length. The engine uses it only to stop; it stops earlier at `max_new_tokens`.
        priority: a lower value goes first, if the engine schedules by priority.
        batch: a static engine batches only sequences with the same value.
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
        """Number of tokens that will be generated."""
        return min(self.output_tokens, self.max_new_tokens)

    @property
    def final_tokens(self) -> int:
        """Number of tokens of prompt and answer together."""
        return self.prompt_tokens + self.answer_tokens


class SequenceTooLongError(ValueError):
    """The sequence does not fit the KV memory even when it runs alone."""

    def __init__(self, sequence: Sequence, capacity_tokens: int) -> None:
        super().__init__(f"sequence {sequence.id!r} does not fit {capacity_tokens} tokens of KV memory")


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of one step. The tokens are available when `duration_s` has passed.

    Attributes:
        duration_s: the duration of the step.
        emitted: sequences that got one token.
        first: sequences that got their first token.
        finished: sequences that got their last token. A static engine emits nothing before a whole batch is finished.
        preempted: sequences that went back to the queue.
        failed: sequences that were lost because memory ran out.
        kv_used_tokens: memory in use during the step, including the sequences that end in it.
    """

    duration_s: float
    emitted: Seq[SequenceId] = ()
    first: Seq[SequenceId] = ()
    finished: Seq[SequenceId] = ()
    preempted: Seq[SequenceId] = ()
    failed: Seq[SequenceId] = ()
    kv_used_tokens: int = 0


class SequenceState:
    """An engine's state of one sequence.

    Attributes:
        tokens: tokens of the prompt and of the answer so far.
        computed: the KV of this many tokens is in memory. The last generated token gets its KV in the next step.
        held: size of the memory that the sequence has taken, in tokens.
        chunk: number of tokens that the next step computes.
    """

    __slots__ = ("chunk", "computed", "final_tokens", "held", "id", "order", "prompt_tokens", "sequence", "tokens")

    def __init__(self, sequence: Sequence, order: int) -> None:
        self.sequence = sequence
        self.order = order
        self.id = sequence.id  # copied from the sequence, because they are read for every token
        self.prompt_tokens = sequence.prompt_tokens
        self.tokens = sequence.prompt_tokens
        self.final_tokens = sequence.final_tokens
        self.computed = 0
        self.held = 0
        self.chunk = 0

    @property
    def rank(self) -> tuple[int, float, int]:
        """The order under the `priority` policy. The lowest rank runs first and is preempted last."""
        return (self.sequence.priority, self.sequence.arrival_s, self.order)
