"""Steps for a discrete-event simulation: a step lists only the sequences that report progress, not every token.

An answer reports progress at its first token and then every `progress_tokens` tokens.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from backends.simulator.engine.base import Engine
from backends.simulator.engine.sequence import Sequence, SequenceId, StepResult


@dataclass(slots=True)
class Advance:
    """One step, or several consecutive steps. The tokens are available when `duration_s` has passed.

    Attributes:
        duration_s: time from the start of the first step to the end of the last.
        tokens: number of generated tokens.
        kv_token_s: memory in use times seconds. A sequence that ends in a step holds its memory to the step's end.
        grown: sequences that report progress and have not ended, with their number of answer tokens so far.
        first: sequences that got their first token.
        finished: sequences that got their last token.
        preempted: sequences that went back to the engine's queue.
        failed: sequences that were lost because memory ran out.
    """

    duration_s: float
    tokens: int
    kv_token_s: float
    grown: Seq[tuple[SequenceId, int]] = ()
    first: Seq[SequenceId] = ()
    finished: Seq[SequenceId] = ()
    preempted: Seq[SequenceId] = ()
    failed: Seq[SequenceId] = ()

    def then(self, later: "Advance") -> "Advance":
        """Return this advance and a later one that follows at once, as one."""
        return Advance(
            self.duration_s + later.duration_s,
            self.tokens + later.tokens,
            self.kv_token_s + later.kv_token_s,
            [*self.grown, *later.grown],
            [*self.first, *later.first],
            [*self.finished, *later.finished],
            [*self.preempted, *later.preempted],
            [*self.failed, *later.failed],
        )


class AdvancingEngine(Protocol):
    """The interface of an engine in a simulation."""

    @property
    def preemptions(self) -> int:
        """Number of preemptions since the start."""
        ...

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        ...

    @property
    def waiting(self) -> int:
        """Number of sequences in the engine's own queue."""
        ...

    @property
    def kv_used_tokens(self) -> int:
        """KV memory in use, in tokens."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Size of the KV memory, in tokens."""
        ...

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises `SequenceTooLongError` if it does not fit the memory even alone."""
        ...

    def advance(self) -> Advance:
        """Run one step."""
        ...


class SteppedEngine:
    """Adapter that runs any `Engine` step by step.

    Args:
        engine: the engine.
        progress_tokens: an answer reports progress every `progress_tokens` tokens.
    """

    def __init__(self, engine: Engine, progress_tokens: int = 16) -> None:
        self._engine = engine
        self._progress_tokens = progress_tokens
        self._generated: dict[SequenceId, int] = {}

    @property
    def preemptions(self) -> int:
        """Number of preemptions since the start."""
        return self._engine.preemptions

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Number of sequences in the engine's own queue."""
        return self._engine.waiting

    @property
    def kv_used_tokens(self) -> int:
        """KV memory in use, in tokens."""
        return self._engine.kv_used_tokens

    @property
    def kv_capacity_tokens(self) -> int:
        """Size of the KV memory, in tokens."""
        return self._engine.kv_capacity_tokens

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: the sequence does not fit the memory even alone.
        """
        self._engine.submit(sequence)
        self._generated[sequence.id] = 0

    def advance(self) -> Advance:
        """Run one step."""
        step = self._engine.step()
        generated = self._generated
        for sequence_id in step.emitted:
            generated[sequence_id] += 1
        for sequence_id in (*step.finished, *step.failed):
            del generated[sequence_id]
        grown = [(sequence_id, generated[sequence_id]) for sequence_id in step.emitted if sequence_id in generated]
        used = step.kv_used_tokens or self._engine.kv_used_tokens
        return advance_of(step, used, grown, self._progress_tokens)


def advance_of(
    step: StepResult, kv_used_tokens: int, grown: list[tuple[SequenceId, int]], progress_tokens: int
) -> Advance:
    """Convert a step to an advance.

    Args:
        step: the engine's result.
        kv_used_tokens: memory in use during the step.
        grown: sequences that got a token and have not ended, with their number of answer tokens so far.
        progress_tokens: an answer reports progress every `progress_tokens` tokens.
    """
    remainder = 1 % progress_tokens
    return Advance(
        step.duration_s,
        len(step.emitted),
        kv_used_tokens * step.duration_s,
        [(sequence_id, tokens) for sequence_id, tokens in grown if tokens % progress_tokens == remainder],
        step.first,
        step.finished,
        step.preempted,
        step.failed,
    )
