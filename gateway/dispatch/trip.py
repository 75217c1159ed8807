"""What became of one request: filled in along its way, read when it is over."""

from dataclasses import dataclass

from gateway.protocol.answers import Usage


@dataclass(slots=True)
class Trip:
    """Monotonic seconds of each stage, None where it never came to it, and what was counted.

    `events` are counted on the stream; `usage` is the engine's own count and wins. `complete`: the whole answer was
    handed to the client's connection, so whatever happens to that from now on, it was answered.
    """

    arrival_s: float
    backend: str | None = None
    dispatched_s: float | None = None
    first_byte_s: float | None = None
    attempts: int = 0
    events: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    complete: bool = False

    @property
    def input_tokens(self) -> int | None:
        """Prompt tokens, where the engine told them."""
        return self.usage.prompt_tokens if self.usage else None

    @property
    def output_tokens(self) -> int:
        """Tokens generated, over all sequences."""
        told = self.usage.completion_tokens if self.usage else None
        return self.events if told is None else told
