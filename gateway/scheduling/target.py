"""How far the predicted peak may fill an engine's memory: as far as the engine itself shows that it goes well.

Predictions are wrong at times, and a peak of the future that never comes holds requests back for nothing. So the target
rises while requests are held back although the engine has memory to spare, and falls when the engine throws work away.
Where that happened is remembered as a ceiling, which lifts slowly: with long answers the consequence of a rise comes
minutes after it. An engine that does not tell leaves the target where it starts.

Source: Chiu & Jain, Analysis of the increase and decrease algorithms (1989); the ceiling is what CUBIC (RFC 9438) does
with the window at which a packet was last lost.
"""

from dataclasses import dataclass

from gateway.scheduling.messages import BackendState

START, MOST = 0.95, 1.6
GAIN = 0.2
"""Of a look: how much the target rises, by the share of the memory that is to spare."""

ROOMY = 0.9
"""Share of the memory in use under which an engine has some to spare."""

FALL = 0.9
LIFT = 1.0005
"""Of a look: how fast a ceiling is forgotten."""


@dataclass(slots=True)
class KvTarget:
    """Share of a backend's KV capacity that the predicted peak may fill."""

    share: float = START
    _ceiling: float = MOST
    _preemptions: int | None = None
    _used_tokens: int = 0
    _held_back: bool = False

    def note_held_back(self) -> None:
        """A request waits because the predicted peak is over the target."""
        self._held_back = True

    def see(self, state: BackendState) -> None:
        """Adapt to what a look at the engine shows, once a look."""
        preempted = self._preempted(state)
        grown = self._grown(state)
        held_back, self._held_back = self._held_back, False
        self._ceiling = min(MOST, self._ceiling * LIFT)
        if state.preemptions is None or not state.kv_capacity_tokens or state.kv_used_tokens is None:
            return
        if preempted:
            self._ceiling = max(START, self.share * FALL)
            self.share = self._ceiling * FALL
        elif held_back and not grown and not state.waiting:
            spare = max(0.0, ROOMY - state.kv_used_tokens / state.kv_capacity_tokens)
            self.share = min(self._ceiling, self.share * (1.0 + GAIN * spare))

    def _preempted(self, state: BackendState) -> bool:
        before, self._preemptions = self._preemptions, state.preemptions
        return before is not None and state.preemptions is not None and state.preemptions > before

    def _grown(self, state: BackendState) -> bool:
        """Whether the memory in use grows still: what was let in last has not come to its peak."""
        before, self._used_tokens = self._used_tokens, state.kv_used_tokens or 0
        return self._used_tokens > before
