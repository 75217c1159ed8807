"""The interface of every simulated engine."""

from typing import Protocol

from backends.simulator.engine.sequence import Sequence, SequenceId, StepResult


class Engine(Protocol):
    """An inference engine without a clock. `preemptions` is the number of preemptions since the start."""

    preemptions: int

    @property
    def running(self) -> int:
        """Number of sequences in the current batch."""
        ...

    @property
    def waiting(self) -> int:
        """Number of sequences in the engine's own queue, including preempted ones."""
        ...

    @property
    def kv_used_tokens(self) -> int:
        """KV memory that active sequences occupy or have reserved, in tokens."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """Size of the KV memory, in tokens."""
        ...

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: the sequence does not fit the memory even alone.
        """
        ...

    def step(self) -> StepResult:
        """Run one forward pass over the batch. A step without work takes no time."""
        ...

    def abort(self, sequence_id: SequenceId) -> bool:
        """Remove a sequence and free its memory. Return whether it was still in the engine."""
        ...
