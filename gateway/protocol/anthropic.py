"""Anthropic's Messages: what the gateway reads of a request, and what answers and streams say of themselves."""

from typing import Any

import msgspec

from gateway.protocol.answers import PromptDetails, Usage
from gateway.protocol.fields import Generation
from gateway.protocol.json_fields import ABSENT, Tokens, decode, decode_or_none, number, size, utf8_bytes
from gateway.protocol.typed_events import ErrorObject, Event, TypedScanner, Vocabulary, failure_of

_FINISH_REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls"}


class _Text(msgspec.Struct):
    text: str | None = None


class _Block(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    content: Any = None
    """Of a tool's result: text, blocks of it, or what else there may be."""
    input: msgspec.Raw = ABSENT
    """Of a tool's call."""


class _Turn(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _OutputConfig(msgspec.Struct):
    effort: Any = None
    format: msgspec.Raw = ABSENT


class _Request(msgspec.Struct):
    model: str
    messages: list[_Turn]
    max_tokens: Tokens | None = None
    system: str | list[_Text] | None = None
    stream: bool | None = None
    metadata: _Metadata | None = None
    tools: msgspec.Raw = ABSENT
    # Only looked at, so of any shape: whether they are right is the engine's to say.
    temperature: Any = None
    stop_sequences: Any = None
    output_config: _OutputConfig | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Answer(msgspec.Struct):
    usage: _Usage | None = None
    stop_reason: str | None = None
    error: ErrorObject | str | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    message: _Answer | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: ErrorObject | str | None = None


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)


def read_messages(body: bytes) -> Generation:
    """Read a `/v1/messages` body.

    Raises:
        InvalidRequest: not JSON, or a field that we use is missing or of the wrong type; `param` names it.
    """
    request = decode(_request_decoder, body)
    texts = [(turn.role, _text(turn.content)) for turn in request.messages]
    system = _joined(request.system)
    tools_bytes = size(request.tools)
    unseen_bytes = sum(_unseen_bytes(turn.content) for turn in request.messages)
    output = request.output_config or _OutputConfig()
    stops = request.stop_sequences
    return Generation(
        model=request.model,
        stream=bool(request.stream),
        includes_usage=True,
        user=(request.metadata and request.metadata.user_id) or None,
        max_tokens=request.max_tokens,
        sequences=1,
        text_bytes=utf8_bytes(system) + sum(utf8_bytes(text) for _, text in texts) + tools_bytes + unseen_bytes,
        prompt_tokens=None,
        system=system or None,
        last_user=next((text for role, text in reversed(texts) if role == "user" and text), None),
        message_count=len(texts),
        temperature=number(request.temperature),
        stop_count=len(stops) if isinstance(stops, list) else 0,
        tools_bytes=tools_bytes,
        schema_bytes=size(output.format),
        reasoning_effort=output.effort if isinstance(output.effort, str) else None,
    )


def read_message(body: bytes) -> Event | None:
    """Decode a whole answer, or return None where it is not one.

    >>> read_message(b'{"stop_reason": "max_tokens", "usage": {"input_tokens": 7, "output_tokens": 3}}').finish_reason
    'length'
    """
    answer = decode_or_none(_answer_decoder, body)
    if answer is None:
        return None
    return Event(
        usage=_usage(answer.usage), finish_reason=_finish_reason(answer.stop_reason), failure=failure_of(answer.error)
    )


def message_scanner(*, hide_usage: bool) -> TypedScanner:
    """Return the scanner of one stream; its usage is part of the API and never hidden."""
    del hide_usage
    return TypedScanner(_VOCABULARY)


def _read_event(payload: bytes) -> Event | None:
    event = decode_or_none(_event_decoder, payload)
    if event is None:
        return None
    usage = _usage(event.usage)
    if event.message is not None and (begun := _usage(event.message.usage)):
        # What is generated so far: too early to count, and a stream that breaks is to be counted by its events.
        usage = Usage(begun.prompt_tokens, None, begun.prompt_tokens_details)
    return Event(
        token=event.type == "content_block_delta",
        usage=usage,
        finish_reason=_finish_reason(event.delta.stop_reason if event.delta else None),
        failure=failure_of(event.error),
        last=event.type == "message_stop",
    )


_VOCABULARY = Vocabulary(
    pieces=(b'"content_block_delta"',), marks=(b'"usage"', b'"error"', b'"message_stop"', b"[DONE]"), read=_read_event
)


def _usage(told: _Usage | None) -> Usage | None:
    """Anthropic counts what came out of the cache, or went into it, apart from the rest of the prompt."""
    if told is None:
        return None
    cached = told.cache_read_input_tokens
    prompt = told.input_tokens
    if prompt is not None:
        prompt += (cached or 0) + (told.cache_creation_input_tokens or 0)
    return Usage(prompt, told.output_tokens, None if cached is None else PromptDetails(cached))


def _finish_reason(stop_reason: str | None) -> str | None:
    return None if stop_reason is None else _FINISH_REASONS.get(stop_reason, "stop")


def _joined(content: str | list[_Text] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)


def _text(content: str | list[_Block]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(block.text for block in content if block.text)


def _unseen_bytes(content: str | list[_Block]) -> int:
    """What the engine reads of a turn beside its text: thoughts, calls of tools and their results."""
    if isinstance(content, str):
        return 0
    return sum(
        utf8_bytes(block.thinking or "") + utf8_bytes(_result(block.content)) + size(block.input) for block in content
    )


def _result(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
