"""Which beginnings of prompts a backend has computed lately: what its prefix cache likely still holds."""

from collections import OrderedDict
from dataclasses import dataclass, field

from gateway.scheduling.messages import Request

REMEMBERED = 4096
"""Prefixes a backend; what it has not seen for so many others counts as evicted."""


@dataclass(slots=True)
class PrefixMemory:
    """The prefixes that a backend was sent, the latest last."""

    _seen: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def shared_tokens(self, request: Request) -> int:
        """Return how many of the prompt's tokens need not be computed there, as far as we know."""
        if not request.prefixes:
            return 0
        return next((prefix.tokens for prefix in request.prefixes if prefix.key in self._seen), 0)

    def note(self, request: Request) -> None:
        """Remember what a request brings."""
        for prefix in reversed(request.prefixes):
            self._seen[prefix.key] = None
            self._seen.move_to_end(prefix.key)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
