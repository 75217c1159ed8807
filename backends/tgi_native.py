"""OpenAI's text and chat completions in the words of TGI's own routes, and their answers back. Pure.

For versions that have no OpenAI routes. What those routes cannot say is refused, not left out. A chat is written as a
dialogue, for the model's template is not known here: who has a chat model wants a version with a chat route.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from backends.base import UntranslatableError

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
GENERATE_PATH = "/generate"
STREAM_PATH = "/generate_stream"

DEFAULT_COMPLETION_TOKENS = 16
DEFAULT_CHAT_TOKENS = 1024

MOST_STOPS = 4
"""Stop sequences that a TGI takes unless told otherwise."""

_SPEAKERS = {"system": "", "developer": "", "user": "User: ", "assistant": "Assistant: "}
_TURN = "\nUser:"

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "echo": (None, False),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
}
"""Fields that the native routes have no words for, and the values that ask for nothing."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: Any = None


class _Asked(msgspec.Struct):
    model: str = ""
    prompt: str | list[Any] | None = None
    messages: list[_Message] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


class _Details(msgspec.Struct):
    finish_reason: str
    generated_tokens: int
    input_length: int | None = None


class _Answer(msgspec.Struct):
    generated_text: str
    details: _Details


class _Token(msgspec.Struct):
    text: str
    special: bool = False


class _Event(msgspec.Struct):
    token: _Token | None = None
    generated_text: str | None = None
    details: _Details | None = None
    error: str | None = None
    error_type: str = "server_error"


@dataclass(slots=True)
class NativeTranslation:
    """One request in TGI's words; what it answers is passed through `whole` or, chunk by chunk, through `feed`."""

    path: str
    body: bytes
    chat: bool
    model: str
    created: int
    stops: tuple[str, ...] = ()
    with_usage: bool = False
    _rest: bytes = b""
    _held: str = ""
    _opened: bool = field(default=False)

    def whole(self, body: bytes) -> bytes:
        """Return the answer as OpenAI's; b"" where it is none."""
        try:
            answer = msgspec.json.decode(body, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        text = self._without_stop(answer.generated_text, answer.details)
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": _reason(answer.details)}
        kind = "chat.completion" if self.chat else "text_completion"
        return msgspec.json.encode({**self._head(kind), "choices": [choice], "usage": _usage(answer.details)})

    def feed(self, chunk: bytes) -> bytes:
        """Return the events, as OpenAI's, that a part of the stream completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return b"".join(self._event(line.removeprefix(b"data:").strip()) for line in lines if line.startswith(b"data:"))

    def _event(self, data: bytes) -> bytes:
        try:
            event = msgspec.json.decode(data, type=_Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _error(f"an event that is not TGI's: {error}", "server_error")
        if event.error is not None:
            return _error(event.error, event.error_type)
        text = "" if event.token is None or event.token.special else event.token.text
        if event.details is None:
            return self._grow(text)
        return self._end(text, event.details)

    def _grow(self, text: str) -> bytes:
        """Pass on what can no longer be the beginning of a stop sequence, which OpenAI does not show and TGI does."""
        said = self._held + text
        keep = max(
            (size for stop in self.stops for size in range(1, len(stop)) if said.endswith(stop[:size])), default=0
        )
        self._held = said[len(said) - keep :]
        said = said[: len(said) - keep]
        return self._delta(said, None) if said else b""

    def _end(self, text: str, details: _Details) -> bytes:
        said = self._without_stop(self._held + text, details)
        ending = self._delta(said, _reason(details))
        if self.with_usage:
            ending += _data({**self._head(self._chunk_kind), "choices": [], "usage": _usage(details)})
        return ending + b"data: [DONE]\n\n"

    def _delta(self, text: str, reason: str | None) -> bytes:
        said: dict[str, Any] = {"delta": {"content": text}} if self.chat else {"text": text}
        if self.chat and not self._opened:
            said["delta"]["role"] = "assistant"
        self._opened = True
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": reason}
        return _data({**self._head(self._chunk_kind), "choices": [choice]})

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": "", "object": kind, "created": self.created, "model": self.model}

    def _without_stop(self, text: str, details: _Details) -> str:
        if details.finish_reason != "stop_sequence":
            return text
        found = max((stop for stop in self.stops if text.endswith(stop)), key=len, default="")
        return text.removesuffix(found)


def translate(path: str, body: bytes, *, created: int, max_total_tokens: int | None = None) -> NativeTranslation:
    """Put a request to one of OpenAI's two routes into TGI's words.

    Args:
        path: the route.
        body: the request's JSON.
        created: seconds since 1970, for the answer.
        max_total_tokens: prompt and answer together that the engine takes; an answer without a limit gets half.

    Raises:
        UntranslatableError: it asks for what the native routes do not have, or is no request.
    """
    chat = path == CHAT_PATH
    asked, fields = _read(body)
    for name, neutral in _NEUTRAL.items():
        if fields.get(name) not in neutral:
            raise UntranslatableError(f"this engine's own routes have nothing like {name!r}", name)
    stops = tuple([asked.stop] if isinstance(asked.stop, str) else asked.stop or ())
    if chat and len(stops) < MOST_STOPS:
        stops = (*stops, _TURN)
    stream = bool(asked.stream)
    native = {
        "inputs": _dialogue(asked.messages) if chat else _text(asked.prompt),
        "parameters": _parameters(asked, stops, chat=chat, max_total_tokens=max_total_tokens),
    }
    return NativeTranslation(
        path=STREAM_PATH if stream else GENERATE_PATH,
        body=msgspec.json.encode(native),
        chat=chat,
        model=asked.model,
        created=created,
        stops=stops,
        with_usage=bool(asked.stream_options and asked.stream_options.include_usage),
    )


def _read(body: bytes) -> tuple[_Asked, dict[str, Any]]:
    try:
        return msgspec.json.decode(body, type=_Asked), msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntranslatableError(str(error), None) from error


def _parameters(asked: _Asked, stops: Iterable[str], *, chat: bool, max_total_tokens: int | None) -> dict[str, Any]:
    """Return the sampling parameters; a temperature of 0 and a share of 1 are errors there, and mean to leave it."""
    limit = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    if limit is None:
        limit = DEFAULT_COMPLETION_TOKENS
        if chat:
            limit = min(DEFAULT_CHAT_TOKENS, (max_total_tokens or 2 * DEFAULT_CHAT_TOKENS) // 2)
    parameters: dict[str, Any] = {"max_new_tokens": limit, "details": True, "return_full_text": False}
    parameters["do_sample"] = asked.temperature != 0
    if asked.temperature:
        parameters["temperature"] = asked.temperature
    if asked.top_p is not None and asked.top_p < 1:
        parameters["top_p"] = asked.top_p
    if asked.seed is not None:
        parameters["seed"] = asked.seed
    if stops := list(stops):
        parameters["stop"] = stops
    return parameters


def _text(prompt: str | list[Any] | None) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UntranslatableError("this engine's own routes take one prompt, as text", "prompt")
    return prompt


def _dialogue(messages: list[_Message] | None) -> str:
    if not messages:
        raise UntranslatableError("a chat needs messages", "messages")
    turns = []
    for message in messages:
        if message.role not in _SPEAKERS or message.tool_calls:
            raise UntranslatableError("this engine's own routes know nothing of tools", "messages")
        turns.append(_SPEAKERS[message.role] + _said(message))
    return "\n".join((*turns, "Assistant:"))


def _said(message: _Message) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    if any(part.type != "text" for part in message.content):
        raise UntranslatableError("this engine's own routes take text alone", "messages")
    return "\n".join(part.text for part in message.content)


def _usage(details: _Details) -> dict[str, int | None]:
    """Return the counts; those of the prompt are unknown to the first versions."""
    prompt, answer = details.input_length, details.generated_tokens
    total = None if prompt is None else prompt + answer
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}


def _reason(details: _Details) -> str:
    return "length" if details.finish_reason == "length" else "stop"


def _error(message: str, kind: str) -> bytes:
    return _data({"error": {"message": message, "type": kind, "param": None, "code": kind}})


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
