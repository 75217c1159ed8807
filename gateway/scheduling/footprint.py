"""How much of an engine a request takes, beside how long it takes it.

Requests share an engine's memory, so one with a prompt of 4 000 tokens keeps ten others out for each second of its
service. What the queue weighs its waiting against is therefore time *and* memory: service time as it would be if every
request took a typical one's memory. Where all requests are of a size this is plain service time.
"""

from dataclasses import dataclass

WEIGHT = 0.01
"""Of one request in the typical footprint."""

LARGEST = 100.0


@dataclass(slots=True)
class Footprint:
    """The typical KV tokens of a request over its service, learned from all."""

    _typical_tokens: float = 0.0

    def weigh(self, tokens: float) -> float:
        """Return the request's share of memory in typical ones, and learn from it.

        Args:
            tokens: prompt and half of the predicted answer: what it holds on average while it runs.

        >>> footprint = Footprint()
        >>> footprint.weigh(100.0)
        1.0
        >>> round(footprint.weigh(300.0), 2)
        2.94
        """
        typical = self._typical_tokens or tokens
        self._typical_tokens = typical + WEIGHT * (tokens - typical)
        return min(LARGEST, max(1.0 / LARGEST, tokens / max(1.0, self._typical_tokens)))
