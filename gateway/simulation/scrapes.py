"""How the gateway sees the engines: with fresh eyes, seldom, or wrongly."""

from dataclasses import dataclass, field, replace
from math import inf

from gateway.scheduling.messages import BackendState
from gateway.simulation.fleet import SimulatedBackend

LOOK_S = 1.0
"""As often as the gateway looks at an engine."""


@dataclass(slots=True)
class ScrapeModel:
    """Looks at engines.

    Args:
        interval_s: between two looks at all of them.
        frozen_from_s: from this time on every look shows what the first one then showed, and claims to be fresh.
        blind: engines tell nothing of themselves but that they are there.
    """

    interval_s: float = LOOK_S
    frozen_from_s: float = inf
    blind: bool = False
    _frozen: dict[str, BackendState] = field(default_factory=dict)

    def at(self, backend: SimulatedBackend, now: float) -> BackendState:
        """Return what a look at a backend shows now."""
        state = backend.state(now)
        if self.blind:
            return BackendState(state.name, state.models, healthy=True, scraped_s=now)
        if now < self.frozen_from_s:
            return state
        return replace(self._frozen.setdefault(state.name, state), scraped_s=now)
