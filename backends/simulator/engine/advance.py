"""Steps as a discrete-event simulation needs them: no list of everybody who got a token, only of those worth a message.

An answer is worth one when its first token is there and, after that, every `progress_tokens` tokens.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Protocol

from backends.simulator.engine.base import Engine
from backends.simulator.engine.sequence import Sequence, SequenceId, StepResult


@dataclass(slots=True)
class Advance:
    """One step, or several in a row. The tokens are there when `duration_s` has passed.

    Attributes:
        duration_s: from the first step's begin to the last one's end.
        tokens: how many were generated.
        kv_token_s: memory in use times seconds; those that end in a step hold theirs to its end.
        grown: who has become worth a message and goes on, with the tokens of the answer so far.
        first: who got the first token.
        finished: who got the last.
        preempted: who went back to the engine's queue.
        failed: who is lost, out of memory.
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
        """Return both as one, where the later one follows at once."""
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
    """An engine for a simulation."""

    @property
    def preemptions(self) -> int:
        """Sequences that lost their KV memory, since the start."""
        ...

    @property
    def running(self) -> int:
        """Sequences in the current batch."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences that are queued inside the engine."""
        ...

    @property
    def kv_used_tokens(self) -> int:
        """KV memory in use, in tokens."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """KV memory in all, in tokens."""
        ...

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence; raises `SequenceTooLongError` if it can never fit."""
        ...

    def advance(self) -> Advance:
        """Run one step."""
        ...


class SteppedEngine:
    """Any engine, advanced by its own steps.

    Args:
        engine: the engine.
        progress_tokens: an answer is worth a message every so many tokens.
    """

    def __init__(self, engine: Engine, progress_tokens: int = 16) -> None:
        self._engine = engine
        self._progress_tokens = progress_tokens
        self._generated: dict[SequenceId, int] = {}

    @property
    def preemptions(self) -> int:
        """Sequences that lost their KV memory, since the start."""
        return self._engine.preemptions

    @property
    def running(self) -> int:
        """Sequences in the current batch."""
        return self._engine.running

    @property
    def waiting(self) -> int:
        """Sequences that are queued inside the engine."""
        return self._engine.waiting

    @property
    def kv_used_tokens(self) -> int:
        """KV memory in use, in tokens."""
        return self._engine.kv_used_tokens

    @property
    def kv_capacity_tokens(self) -> int:
        """KV memory in all, in tokens."""
        return self._engine.kv_capacity_tokens

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: it can never fit.
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
    """Return a step as an advance.

    Args:
        step: what the engine said.
        kv_used_tokens: memory in use during it.
        grown: who got a token and goes on, with the tokens of the answer so far.
        progress_tokens: an answer is worth a message every so many tokens.
    """
    worth = 1 % progress_tokens
    return Advance(
        step.duration_s,
        len(step.emitted),
        kv_used_tokens * step.duration_s,
        [(sequence_id, tokens) for sequence_id, tokens in grown if tokens % progress_tokens == worth],
        step.first,
        step.finished,
        step.preempted,
        step.failed,
    )
