"""How far the predicted peak may fill an engine's memory: nearly all of it, until the engine itself shows otherwise.

What the ledger plans with is already cautious, so there is nothing to gain above `START`: with long answers the
consequence of a rise comes minutes after it, and then hundreds of preemptions come at once. An engine that throws work
away gets less at once, by the share of its time that this cost it, and slowly more again.

Source: Chiu & Jain, Analysis of the increase and decrease algorithms (1989).
"""

from dataclasses import dataclass
from math import exp

START = 0.97
LEAST = 0.85

LARGEST_FALL = 0.05
"""Of one look."""

RECOVERY_S = 20.0
"""Time in which all but 1/e of a fall is forgotten."""


@dataclass(slots=True)
class KvTarget:
    """Share of a backend's KV capacity that the predicted peak may fill."""

    share: float = START
    _preemptions: int | None = None
    _seen_s: float | None = None

    def see(self, preemptions: int | None, redo_s: float, now: float) -> None:
        """Adapt to what a look at the engine shows.

        Args:
            preemptions: the engine's, since its start; None if it does not tell.
            redo_s: seconds that one preemption costs, as its work is done again.
            now: of the look, in monotonic seconds.
        """
        before, self._preemptions = self._preemptions, preemptions
        elapsed_s = now - self._seen_s if self._seen_s is not None else 0.0
        self._seen_s = now
        if preemptions is None or before is None or elapsed_s <= 0.0:
            return
        lost = (preemptions - before) * redo_s / elapsed_s
        self.share += (START - self.share) * (1.0 - exp(-elapsed_s / RECOVERY_S))
        self.share = max(LEAST, self.share * (1.0 - min(LARGEST_FALL, max(0.0, lost))))
