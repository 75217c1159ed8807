"""Streams whose events name their type, as those of Anthropic's Messages and OpenAI's Responses do.

Unlike a stream of completions, such a stream always says its end; one that stops before has failed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from gateway.protocol.answers import Usage
from gateway.protocol.sse import StreamScanner


@dataclass(frozen=True, slots=True)
class Event:
    """What one event says: a piece of the answer, counts as far as they are known, its end, or a failure."""

    token: bool = False
    usage: Usage | None = None
    finish_reason: str | None = None
    failure: str | None = None
    last: bool = False


class ErrorObject(msgspec.Struct):
    """An error, in an answer's or an event's place."""

    message: str = "no reason given"


def failure_of(error: ErrorObject | str | None) -> str | None:
    """Return an error's message; servers that are not the API's own may give nothing but that."""
    return error.message if isinstance(error, ErrorObject) else error


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How an API words its events.

    Args:
        pieces: what stands, once, in an event that carries a piece of the answer and nothing else of interest.
        marks: one of them stands in every event that has something else to say.
        read: decodes an event's data; None where it is not one of the API's.
    """

    pieces: tuple[bytes, ...]
    marks: tuple[bytes, ...]
    read: Callable[[bytes], Event | None]


class TypedScanner(StreamScanner):
    """Follows a stream of typed events."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(hide_usage=False)
        self._vocabulary = vocabulary

    @property
    def succeeded(self) -> bool:
        """The stream said its end, and no error before."""
        return self.error is None and self.done

    def _worth_a_look(self, events: bytes) -> bool:
        return any(mark in events for mark in self._vocabulary.marks)

    def _count(self, events: bytes) -> int:
        return sum(events.count(piece) for piece in self._vocabulary.pieces)

    def _learn(self, payload: bytes) -> bool:
        event = self._vocabulary.read(payload)
        if event is None:
            return True
        if event.failure is not None:
            self.error = event.failure
            return False
        self.events += event.token
        self.usage = _merged(self.usage, event.usage)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.done = self.done or event.last
        return True


def _merged(before: Usage | None, now: Usage | None) -> Usage | None:
    """The newer counts, and of what they leave out the older ones."""
    if before is None or now is None:
        return now or before
    prompt = before.prompt_tokens if now.prompt_tokens is None else now.prompt_tokens
    completion = before.completion_tokens if now.completion_tokens is None else now.completion_tokens
    return Usage(prompt, completion, now.prompt_tokens_details or before.prompt_tokens_details)
