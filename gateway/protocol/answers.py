"""What the gateway reads of an engine's answer: token counts, the finish reason, or an error."""

from typing import Any, Protocol, TypeVar

import msgspec

T = TypeVar("T")


class AnswerInfo(Protocol):
    """What the gateway reads of a whole answer, in any API."""

    @property
    def usage(self) -> "Usage | None":
        """The engine's own token counts."""
        ...

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, in OpenAI's words; `length` means that a limit cut it."""
        ...

    @property
    def failure(self) -> str | None:
        """The message of an error that the engine sent instead of an answer."""
        ...


class PromptDetails(msgspec.Struct, frozen=True):
    """The part of the prompt that the engine found in its prefix cache."""

    cached_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    """The engine's own token counts."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None


class CompletionAnswer(msgspec.Struct, frozen=True):
    """A whole chat or text completion, or one event of its stream."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: dict[str, Any] | str | None = None

    @property
    def finish_reason(self) -> str | None:
        """The first finish reason among the choices; `length` has precedence, because it means a cut answer."""
        reasons = [choice.finish_reason for choice in self.choices or () if choice.finish_reason]
        return "length" if "length" in reasons else next(iter(reasons), None)

    @property
    def failure(self) -> str | None:
        """The message of an error that the engine sent instead of an answer.

        A vLLM that is stopped ends its answers with the finish reason `abort`; that is a failure too.
        """
        if isinstance(self.error, dict):
            return str(self.error.get("message") or "no reason given")
        if self.error is None and any(choice.finish_reason == "abort" for choice in self.choices or ()):
            return "it was stopped before the answer's end"
        return self.error


_decoder = msgspec.json.Decoder(CompletionAnswer)


def read_answer(body: bytes) -> CompletionAnswer | None:
    """Decode an answer; return None if the body is not one.

    >>> read_answer(b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 3}}').finish_reason
    'stop'
    """
    return decode_or_none(_decoder, body)


def decode_or_none(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T | None:
    """Decode JSON that an engine sent; return None if it does not have the expected type."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
