"""Streams whose events name their type: Anthropic's Messages and OpenAI's Responses.

Unlike a stream of completions, such a stream always reports its end. A stream that stops before has failed.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gateway.protocol.answers import Usage
from gateway.protocol.sse import StreamScanner, names_error


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """What the gateway reads of one event.

    Attributes:
        token: the event carries a piece of the answer.
        usage: the token counts that the event reports.
        finish_reason: why the answer ended, in OpenAI's words.
        failure: the message of an error.
        last: the event ends the stream.
    """

    token: bool = False
    usage: Usage | None = None
    finish_reason: str | None = None
    failure: str | None = None
    last: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The events of one API.

    Args:
        pieces: an event that carries only a piece of the answer contains one of these texts, once.
        marks: every event that the scanner must decode contains one of these texts.
        read: decodes the data of an event.
    """

    pieces: tuple[bytes, ...]
    marks: tuple[bytes, ...]
    read: Callable[[bytes], StreamEvent]


class TypedScanner(StreamScanner):
    """The scanner of a stream of typed events."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(hide_usage=False)
        self._vocabulary = vocabulary

    @property
    def succeeded(self) -> bool:
        """Whether the stream reported its end, and no error."""
        return self.error is None and self.done

    def _needs_decoding(self, events: bytes) -> bool:
        return any(mark in events for mark in self._vocabulary.marks) or names_error(events)

    def _count(self, events: bytes) -> int:
        return sum(events.count(piece) for piece in self._vocabulary.pieces)

    def _read(self, payload: bytes) -> bool:
        event = self._vocabulary.read(payload)
        if event.failure is not None:
            self.error = event.failure
            return False
        self.events += event.token
        self.usage = _merged(self.usage, event.usage)
        self.finish_reason = event.finish_reason or self.finish_reason
        self.done = self.done or event.last
        return True


def _merged(before: Usage | None, now: Usage | None) -> Usage | None:
    """Return the newer counts; where they lack one, the older count."""
    if before is None or now is None:
        return now or before
    prompt = before.prompt_tokens if now.prompt_tokens is None else now.prompt_tokens
    completion = before.completion_tokens if now.completion_tokens is None else now.completion_tokens
    return Usage(prompt, completion, now.prompt_tokens_details or before.prompt_tokens_details)
