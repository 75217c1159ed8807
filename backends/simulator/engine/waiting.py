"""The engine's own queue, in the two orders that vLLM offers."""

from bisect import insort
from collections import deque
from typing import Protocol

from backends.simulator.engine.sequence import SequenceState


class WaitingQueue(Protocol):
    """Sequences that wait for admission."""

    def __len__(self) -> int: ...

    def push(self, state: SequenceState) -> None:
        """Add an arrival."""
        ...

    def push_preempted(self, state: SequenceState) -> None:
        """Take back one that was running."""
        ...

    def peek(self) -> SequenceState:
        """Return the next one to admit."""
        ...

    def pop(self) -> SequenceState:
        """Remove and return the next one to admit."""
        ...

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted one."""
        ...

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Choose whom to preempt among the running, who are in the order of their admission."""
        ...


class FcfsQueue:
    """First come, first served: the preempted return to the head, and the newest is preempted first."""

    def __init__(self) -> None:
        self._states: deque[SequenceState] = deque()

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: SequenceState) -> None:
        """Add an arrival at the tail."""
        self._states.append(state)

    def push_preempted(self, state: SequenceState) -> None:
        """Take back one that was running, at the head."""
        self._states.appendleft(state)

    def peek(self) -> SequenceState:
        """Return the head."""
        return self._states[0]

    def pop(self) -> SequenceState:
        """Remove and return the head."""
        return self._states.popleft()

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted one."""
        self._states.remove(state)

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Choose the newest."""
        return running[-1]


class PriorityQueue:
    """Lowest priority value first, then arrival; the preempted rank as they did when they came."""

    def __init__(self) -> None:
        self._states: list[SequenceState] = []  # the next one last, where popping is cheap

    def __len__(self) -> int:
        return len(self._states)

    def push(self, state: SequenceState) -> None:
        """Add an arrival at its rank."""
        insort(self._states, state, key=_reversed_rank)

    def push_preempted(self, state: SequenceState) -> None:
        """Take back one that was running, at its rank."""
        self.push(state)

    def peek(self) -> SequenceState:
        """Return the one with the lowest rank."""
        return self._states[-1]

    def pop(self) -> SequenceState:
        """Remove and return the one with the lowest rank."""
        return self._states.pop()

    def remove(self, state: SequenceState) -> None:
        """Remove an aborted one."""
        self._states.remove(state)

    def victim(self, running: list[SequenceState]) -> SequenceState:
        """Choose the one with the highest rank."""
        return max(running, key=lambda state: state.rank)


def _reversed_rank(state: SequenceState) -> tuple[int, float, int]:
    priority, arrival_s, order = state.rank
    return (-priority, -arrival_s, -order)
