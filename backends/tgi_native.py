"""Translation of OpenAI's text and chat completions to TGI's native routes and back. Pure.

It serves versions of TGI without OpenAI's routes. A request that the native routes cannot express is rejected. A chat
becomes a plain dialogue, because the gateway does not know the model's chat template; a chat model needs a version of
TGI that has the chat route.
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

MAX_STOPS = 4
"""The number of stop sequences that TGI accepts by default."""

_ROLE_PREFIXES = {"system": "", "developer": "", "user": "User: ", "assistant": "Assistant: "}
_TURN = "\nUser:"

_UNSUPPORTED: dict[str, tuple[object, ...]] = {
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
"""Fields that the native routes cannot express, with the values that have no effect."""


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: Any = None


class _Request(msgspec.Struct):
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
    """One request in TGI's format. It converts the answer with `whole`, or chunk by chunk with `feed`."""

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
        """Return the answer in OpenAI's format, or b"" if `body` is not an answer."""
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
        """Return the stream events, in OpenAI's format, that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return b"".join(self._event(line.removeprefix(b"data:").strip()) for line in lines if line.startswith(b"data:"))

    def _event(self, data: bytes) -> bytes:
        try:
            event = msgspec.json.decode(data, type=_Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return _error(f"the engine sent an event that is not in TGI's format: {error}", "server_error")
        if event.error is not None:
            return _error(event.error, event.error_type)
        text = "" if event.token is None or event.token.special else event.token.text
        if event.details is None:
            return self._grow(text)
        return self._end(text, event.details)

    def _grow(self, text: str) -> bytes:
        """Return the text that cannot be the start of a stop sequence. TGI shows stop sequences; OpenAI does not."""
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
    """Translate a request to one of OpenAI's two routes to TGI's native format.

    Args:
        path: the route.
        body: the request's JSON.
        created: the answer's timestamp, in seconds since 1970.
        max_total_tokens: the engine's limit for prompt and answer together. A chat without a limit gets half of it.

    Raises:
        UntranslatableError: the native routes cannot express the request, or the body is not a valid request.
    """
    chat = path == CHAT_PATH
    request, fields = _read(body)
    for name, ignored_values in _UNSUPPORTED.items():
        if fields.get(name) not in ignored_values:
            raise UntranslatableError(f"this engine does not support {name!r}", name)
    stops = tuple([request.stop] if isinstance(request.stop, str) else request.stop or ())
    if chat and len(stops) < MAX_STOPS:
        stops = (*stops, _TURN)
    stream = bool(request.stream)
    native = {
        "inputs": _dialogue(request.messages) if chat else _text(request.prompt),
        "parameters": _parameters(request, stops, chat=chat, max_total_tokens=max_total_tokens),
    }
    return NativeTranslation(
        path=STREAM_PATH if stream else GENERATE_PATH,
        body=msgspec.json.encode(native),
        chat=chat,
        model=request.model,
        created=created,
        stops=stops,
        with_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _read(body: bytes) -> tuple[_Request, dict[str, Any]]:
    try:
        return msgspec.json.decode(body, type=_Request), msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UntranslatableError(str(error), None) from error


def _parameters(request: _Request, stops: Iterable[str], *, chat: bool, max_total_tokens: int | None) -> dict[str, Any]:
    """Return the sampling parameters. TGI rejects a temperature of 0 and a `top_p` of 1, so they are left out."""
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if limit is None:
        limit = DEFAULT_COMPLETION_TOKENS
        if chat:
            limit = min(DEFAULT_CHAT_TOKENS, (max_total_tokens or 2 * DEFAULT_CHAT_TOKENS) // 2)
    parameters: dict[str, Any] = {"max_new_tokens": limit, "details": True, "return_full_text": False}
    parameters["do_sample"] = request.temperature != 0
    if request.temperature:
        parameters["temperature"] = request.temperature
    if request.top_p is not None and request.top_p < 1:
        parameters["top_p"] = request.top_p
    if request.seed is not None:
        parameters["seed"] = request.seed
    if stops := list(stops):
        parameters["stop"] = stops
    return parameters


def _text(prompt: str | list[Any] | None) -> str:
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise UntranslatableError("this engine accepts one prompt, as a string", "prompt")
    return prompt


def _dialogue(messages: list[_Message] | None) -> str:
    if not messages:
        raise UntranslatableError("messages must contain at least one message", "messages")
    turns = []
    for message in messages:
        if message.role not in _ROLE_PREFIXES or message.tool_calls:
            raise UntranslatableError("this engine does not support tools", "messages")
        turns.append(_ROLE_PREFIXES[message.role] + _message_text(message))
    return "\n".join((*turns, "Assistant:"))


def _message_text(message: _Message) -> str:
    if not isinstance(message.content, list):
        return message.content or ""
    if any(part.type != "text" for part in message.content):
        raise UntranslatableError("this engine supports text only", "messages")
    return "\n".join(part.text for part in message.content)


def _usage(details: _Details) -> dict[str, int | None]:
    """Return the usage. The first versions do not report the prompt tokens."""
    prompt, answer = details.input_length, details.generated_tokens
    total = None if prompt is None else prompt + answer
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": total}


def _reason(details: _Details) -> str:
    return "length" if details.finish_reason == "length" else "stop"


def _error(message: str, kind: str) -> bytes:
    return _data({"error": {"message": message, "type": kind, "param": None, "code": kind}})


def _data(event: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(event) + b"\n\n"
