"""What the gateway reads of an engine's answer: token counts, the finish reason, or an error.

The gateway passes on an answer that it does not understand. A field of an unexpected type or value counts as unknown.
Only an error that says something, or no answer at all, is a failure of the engine.
"""

import json
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar, get_args

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""A number of tokens. Other numbers are not believed."""

MAX_MESSAGE_CHARS = 4096
"""Longest message of an engine's error that the gateway passes on."""

_FIRST_BYTES = 64
"""An answer whose first bytes are not blank is not empty."""


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

    cached_tokens: Count | None = None


class Usage(msgspec.Struct, frozen=True):
    """The engine's own token counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None


class _Choice(msgspec.Struct, frozen=True):
    finish_reason: str | None = None
    index: int | None = None


class CompletionAnswer(msgspec.Struct, frozen=True):
    """A whole chat or text completion, or one event of its stream."""

    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None

    @property
    def finish_reason(self) -> str | None:
        """The first finish reason among the choices; `length` has precedence, because it means a cut answer."""
        reasons = [choice.finish_reason for choice in self.choices or () if choice.finish_reason]
        return "length" if "length" in reasons else next(iter(reasons), None)

    @property
    def failure(self) -> str | None:
        """The message of an error that the engine sent instead of an answer.

        A vLLM that is stopped ends its answers with the finish reason `abort`; that is a failure too. Its older
        versions send the fields of an error without a field `error` around them.
        """
        if self.object == "error":
            return failure_of({"message": self.message, "object": self.object})
        if any(choice.finish_reason == "abort" for choice in self.choices or ()):
            return failure_of(self.error) or "it was stopped before the answer's end"
        return failure_of(self.error)


def failure_of(error: object) -> str | None:
    """Return the message of an error of any shape; None if it says nothing.

    >>> failure_of({"message": "out of memory"}), failure_of({"message": "", "code": None}), failure_of([{"code": 7}])
    ('out of memory', None, 'no reason given')
    """
    if isinstance(error, list):
        return next((failure for each in error if not isinstance(each, list) and (failure := failure_of(each))), None)
    if isinstance(error, dict):
        if not any(error.values()):
            return None
        error = error.get("message") or True
    if not error:
        return None
    return error[:MAX_MESSAGE_CHARS] if isinstance(error, str) else "no reason given"


def is_absent(body: bytes) -> bool:
    """Return whether the body is no answer: it is empty, or a web page.

    >>> is_absent(b" "), is_absent(b"<html>"), is_absent(b"{}")
    (True, True, False)
    """
    start = body[:_FIRST_BYTES].strip() or body.strip()
    return not start or start.startswith(b"<")


def answer_reader(struct: type[S]) -> Callable[[bytes], S]:
    """Return a function that reads JSON of an engine; what it does not understand gets the default of `struct`."""
    decoder = msgspec.json.Decoder(struct)

    def read(body: bytes) -> S:
        try:
            return decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return _convert(_parse(body), struct)

    return read


read_answer = answer_reader(CompletionAnswer)
"""Reads a whole completion, or one event of its stream."""


def _parse(body: bytes) -> object:
    """Return the value of JSON as Python's own parser reads it: it takes NaN, a byte order mark and half characters."""
    try:
        return json.loads(body.decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None


def _convert(value: object, struct: type[S]) -> S:
    """Return the struct with those fields of an object that have the expected type."""
    known: dict[str, Any] = {}
    for each in msgspec.structs.fields(struct) if isinstance(value, dict) else ():
        if isinstance(value, dict) and each.encode_name in value:
            given = value[each.encode_name]
            try:
                known[each.name] = msgspec.convert(given, each.type)
            except (msgspec.ValidationError, RecursionError):
                known |= _convert_inner(each.name, given, each.type)
    return struct(**known)


def _convert_inner(name: str, given: object, kind: object) -> dict[str, Any]:
    """Return the field with what is understood of the structs in it; nothing if it holds none."""
    inner = _struct_in(kind)
    if inner is None:
        return {}
    if isinstance(given, dict) and not _is_list(kind):
        return {name: _convert(given, inner)}
    if isinstance(given, list) and _is_list(kind):
        return {name: [_convert(item, inner) for item in given]}
    return {}


def _struct_in(kind: object) -> type[msgspec.Struct] | None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind
    return next((found for part in get_args(kind) if (found := _struct_in(part))), None)


def _is_list(kind: object) -> bool:
    return any(getattr(part, "__origin__", None) is list for part in (kind, *get_args(kind)))
