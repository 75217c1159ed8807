"""The engine's own queue, in the two orders that vLLM offers."""

from bisect import insort
from collections import deque
from typing import Protocol

from backends.simulator.engine.sequence import SequenceState


class WaitingQueue(Protocol):
    """Sequences that wait for admission."""

    def __len__(self) -> int: ...

    def push(self, state: SequenceState) -> None:
        """Add a new sequence."""
        ...

    def push_preempted(self, state: SequenceState) -> None:
        """Put back a preempted sequence."""
        ...

    def peek(self) -> SequenceState:
        """Return the sequence to admit next."""
        ...

    def pop(self) -> SequenceState:
        """Remove and return the sequence to admit next."""
        ...

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted sequence."""
        ...

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Return the sequence to preempt. `running` is in the order of admission."""
        ...


class FcfsQueue:
    """First come, first served. Preempted sequences return to the head; the newest sequence is preempted first."""

    def __init__(self) -> None:
        self._states: deque[SequenceState] = deque()

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: SequenceState) -> None:
        """Add a new sequence at the tail."""
        self._states.append(state)

    def push_preempted(self, state: SequenceState) -> None:
        """Put back a preempted sequence at the head."""
        self._states.appendleft(state)

    def peek(self) -> SequenceState:
        """Return the head."""
        return self._states[0]

    def pop(self) -> SequenceState:
        """Remove and return the head."""
        return self._states.popleft()

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted sequence."""
        self._states.remove(state)

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Return the newest sequence."""
        return running[-1]


class PriorityQueue:
    """Lowest priority value first, then earliest arrival. A preempted sequence keeps its rank."""

    def __init__(self) -> None:
        self._states: list[SequenceState] = []  # the next one is last, where pop is cheap

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: SequenceState) -> None:
        """Insert a new sequence at its rank."""
        insort(self._states, state, key=_reversed_rank)

    def push_preempted(self, state: SequenceState) -> None:
        """Insert a preempted sequence at its rank."""
        self.push(state)

    def peek(self) -> SequenceState:
        """Return the sequence with the lowest rank."""
        return self._states[-1]

    def pop(self) -> SequenceState:
        """Remove and return the sequence with the lowest rank."""
        return self._states.pop()

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted sequence."""
        self._states.remove(state)

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Return the sequence with the highest rank."""
        return max(running, key=lambda state: state.rank)


def _reversed_rank(state: SequenceState) -> tuple[int, float, int]:
    priority, arrival_s, order = state.rank
    return (-priority, -arrival_s, -order)
