"""What an engine's answer says of itself: token counts, why it ended, or that it failed."""

from typing import Any, Protocol

import msgspec

from gateway.protocol.json_fields import decode_or_none


class AnswerInfo(Protocol):
    """What a whole answer of any API says of itself."""

    @property
    def usage(self) -> "Usage | None":
        """The engine's own token counts."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why it ended, in OpenAI's words: `length` says that it was cut."""
        ...

    @property
    def failure(self) -> str | None:
        """The message of the error that came in the answer's place."""
        ...


class PromptDetails(msgspec.Struct, frozen=True):
    """The part of the prompt that came out of the engine's prefix cache."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """The engine's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """A whole JSON answer, or one event of a stream."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: dict[str, Any] | str | None = None

    @property
    def finish_reason(self) -> str | None:
        """The first choice's that has one; `length` wins, since it says that the answer was cut."""
        reasons = [choice.finish_reason for choice in self.choices or () if choice.finish_reason]
        return "length" if "length" in reasons else next(iter(reasons), None)

    @property
    def failure(self) -> str | None:
        """The message of the error that came in an answer's place.

        vLLM that is stopped ends its answers with the reason `abort`, as if they had come to their end.
        """
        if isinstance(self.error, dict):
            return str(self.error.get("message") or "no reason given")
        if self.error is None and any(choice.finish_reason == "abort" for choice in self.choices or ()):
            return "it was stopped before the answer's end"
        return self.error


_decoder = msgspec.json.Decoder(Answer)


def read_answer(body: bytes) -> Answer | None:
    """Decode an answer, or return None where it is not one.

    >>> read_answer(b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 3}}').finish_reason
    'stop'
    """
    return decode_or_none(_decoder, body)
