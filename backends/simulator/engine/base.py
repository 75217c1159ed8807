"""What every simulated engine can do."""

from typing import Protocol

from backends.simulator.engine.sequence import Sequence, SequenceId, StepResult


class Engine(Protocol):
    """An inference engine that knows no clock.

    `preemptions` counts since the start.
    """

    preemptions: int

    @property
    def running(self) -> int:
        """Sequences in the current batch."""
        ...

    @property
    def waiting(self) -> int:
        """Sequences that are queued inside the engine, preempted ones among them."""
        ...

    @property
    def kv_used_tokens(self) -> int:
        """KV memory that active sequences occupy or have reserved, in tokens."""
        ...

    @property
    def kv_capacity_tokens(self) -> int:
        """KV memory in all, in tokens."""
        ...

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence.

        Raises:
            SequenceTooLongError: it can never fit.
        """
        ...

    def step(self) -> StepResult:
        """Run one forward pass over the batch; a step with nothing to do takes no time."""
        ...

    def abort(self, sequence_id: SequenceId) -> bool:
        """Drop a sequence and free its memory at once; tell whether it was still there."""
        ...
