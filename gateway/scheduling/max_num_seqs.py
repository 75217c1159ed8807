"""How many requests an engine runs at once, learned from the ones that it lets wait.

An engine has so many seats (vLLM's `max_num_seqs`) and does not tell how many. Where some of its requests wait though
it has memory to spare, and the number that runs stays the same, that number is it.
"""

from dataclasses import dataclass
from math import inf

from gateway.scheduling.messages import BackendState

SPARE = 0.9
"""Share of the memory in use under which requests do not wait for memory."""


@dataclass(slots=True)
class Seats:
    """Requests that a backend runs at once, as far as it has shown."""

    _learned: float = inf
    _running: int | None = None

    def most(self, configured: int | None) -> float:
        """Return how many requests the backend may have."""
        return self._learned if configured is None else min(self._learned, configured)

    def see(self, state: BackendState) -> None:
        """Learn from a look at the backend."""
        used, capacity, running = state.kv_used_tokens, state.kv_capacity_tokens, state.running
        if used is None or not capacity or running is None or state.waiting is None:
            return
        waiting_for_a_seat = state.waiting > 0 and used < SPARE * capacity
        if waiting_for_a_seat and running == self._running:
            self._learned = running
        elif not state.waiting and running >= self._learned:
            self._learned += 1  # it may have been restarted with more
        self._running = running if waiting_for_a_seat else None
