"""Anthropic's Messages: what the gateway reads of a request, of a whole answer and of a stream."""

from typing import Any

import msgspec

from gateway.protocol.answers import Count, PromptDetails, Usage, answer_reader, failure_of
from gateway.protocol.generation_request import (
    ABSENT,
    MAX_MESSAGES,
    MAX_PARTS,
    GenerationRequest,
    Reader,
    Tokens,
    check_count,
    number,
    size,
    utf8_bytes,
)
from gateway.protocol.openai import Turns, last_user_text, odd_bytes, prompt_prefixes, read_odd_turns, text_of
from gateway.protocol.typed_events import StreamEvent, TypedScanner, Vocabulary

_FINISH_REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "tool_use": "tool_calls"}


class _SystemBlock(msgspec.Struct):
    text: str | None = None


class _ContentBlock(msgspec.Struct):
    text: str | None = None
    thinking: str | None = None
    content: Any = None
    """The result of a tool: a text, or a list of blocks."""
    input: msgspec.Raw = ABSENT
    """The arguments of a tool call."""


class _Turn(msgspec.Struct):
    role: str = ""
    content: str | list[_ContentBlock] | None = None


class _Metadata(msgspec.Struct):
    user_id: str | None = None


class _OutputConfig(msgspec.Struct):
    effort: Any = None
    format: msgspec.Raw = ABSENT


class _MessagesBody(msgspec.Struct):
    model: Any = None
    messages: list[msgspec.Raw] = []
    max_tokens: Tokens | None = None
    system: msgspec.Raw = ABSENT
    stream: bool | None = None
    metadata: _Metadata | None = None
    tools: msgspec.Raw = ABSENT
    temperature: Any = None
    stop_sequences: Any = None
    output_config: _OutputConfig | None = None


class _MessageUsage(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None


class _Message(msgspec.Struct):
    usage: _MessageUsage | None = None
    stop_reason: str | None = None
    error: Any = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _MessageEvent(msgspec.Struct):
    type: str | None = None
    message: _Message | None = None
    delta: _Delta | None = None
    usage: _MessageUsage | None = None
    error: Any = None


_reader = Reader(_MessagesBody)
_turn_decoder = msgspec.json.Decoder(_Turn)
_system_decoder = msgspec.json.Decoder(str | list[_SystemBlock] | None)
_read_answer = answer_reader(_Message)
_read_stream_event = answer_reader(_MessageEvent)


def read_messages(body: bytes) -> GenerationRequest:
    """Read a `/v1/messages` body.

    Raises:
        InvalidRequest: not a JSON object in UTF-8.
        BodyTooLarge: too many messages or content blocks.
    """
    fields, odd = _reader.read(body)
    turns = _read_turns(fields.messages)
    system, system_bytes = _system(fields.system)
    tools_bytes = size(fields.tools)
    output = fields.output_config or _OutputConfig()
    stops = fields.stop_sequences
    roles, messages = turns.roles, fields.messages
    if bytes(fields.system):
        roles, messages = ["system", *roles], [fields.system, *messages]
    return GenerationRequest(
        body=body,
        model=fields.model if isinstance(fields.model, str) else "",
        stream=bool(fields.stream),
        includes_usage=True,
        user=(fields.metadata and fields.metadata.user_id) or None,
        max_tokens=fields.max_tokens,
        limits_answer=fields.max_tokens is not None or "max_tokens" in odd,
        sequences=1,
        text_bytes=system_bytes
        + sum(map(utf8_bytes, turns.texts))
        + tools_bytes
        + turns.other_bytes
        + odd_bytes(odd, "messages"),
        system=system or None,
        last_user=last_user_text(*_with_text(turns)),
        message_count=len(turns.roles),
        temperature=number(fields.temperature),
        stop_count=len(stops) if isinstance(stops, list) else 0,
        tools_bytes=tools_bytes,
        schema_bytes=size(output.format),
        reasoning_effort=output.effort if isinstance(output.effort, str) else None,
        message_prefixes=prompt_prefixes(body, roles, messages, fields.tools),
        takes_priority=False,
    )


def _read_turns(messages: list[msgspec.Raw]) -> Turns:
    check_count(len(messages), MAX_MESSAGES, "messages")
    try:
        turns = [_turn_decoder.decode(item) for item in messages]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return read_odd_turns(messages)
    check_count(sum([len(turn.content) for turn in turns if isinstance(turn.content, list)]), MAX_PARTS, "messages")
    texts = [text_of(turn.content) for turn in turns]
    return Turns([turn.role for turn in turns], texts, sum([_other_bytes(turn.content) for turn in turns]))


def _with_text(turns: Turns) -> tuple[list[str], list[str]]:
    """Return the roles and texts of the turns that have a text: a user's turn may hold tool results only."""
    kept = [(role, text) for role, text in zip(turns.roles, turns.texts, strict=True) if text]
    return [role for role, _ in kept], [text for _, text in kept]


def _system(raw: msgspec.Raw) -> tuple[str, int]:
    """Return the system prompt, and the size of what the engine reads of it."""
    if not bytes(raw):
        return "", 0
    try:
        text = text_of(_system_decoder.decode(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "", size(raw)
    return text, utf8_bytes(text)


def read_message(body: bytes) -> StreamEvent:
    """Read a whole answer.

    >>> read_message(b'{"stop_reason": "max_tokens", "usage": {"input_tokens": 7, "output_tokens": 3}}').finish_reason
    'length'
    """
    answer = _read_answer(body)
    return StreamEvent(
        usage=_usage(answer.usage), finish_reason=_finish_reason(answer.stop_reason), failure=failure_of(answer.error)
    )


def message_scanner(*, hide_usage: bool, answers: int = 1) -> TypedScanner:
    """Return a scanner for one stream. The API always reports token counts, so they are never hidden."""
    del hide_usage, answers
    return TypedScanner(_VOCABULARY)


def _read_event(payload: bytes) -> StreamEvent:
    event = _read_stream_event(payload)
    usage = _usage(event.usage)
    if event.message is not None and (first := _usage(event.message.usage)):
        # The first event reports too few completion tokens: a stream that breaks is counted by its events instead.
        usage = Usage(first.prompt_tokens, None, first.prompt_tokens_details)
    return StreamEvent(
        token=event.type == "content_block_delta",
        usage=usage,
        finish_reason=_finish_reason(event.delta.stop_reason if event.delta else None),
        failure=failure_of(event.error),
        last=event.type == "message_stop",
    )


_VOCABULARY = Vocabulary(
    pieces=(b'"content_block_delta"',), marks=(b'"usage"', b'"error"', b'"message_stop"', b"[DONE]"), read=_read_event
)


def _usage(reported: _MessageUsage | None) -> Usage | None:
    """Return the whole prompt's tokens. Anthropic counts separately what was read from, or written to, its cache."""
    if reported is None:
        return None
    cached = reported.cache_read_input_tokens
    prompt = reported.input_tokens
    if prompt is not None:
        prompt += (cached or 0) + (reported.cache_creation_input_tokens or 0)
    return Usage(prompt, reported.output_tokens, None if cached is None else PromptDetails(cached))


def _finish_reason(stop_reason: str | None) -> str | None:
    return None if stop_reason is None else _FINISH_REASONS.get(stop_reason, "stop")


def _other_bytes(content: str | list[_ContentBlock] | None) -> int:
    """Return the size of what the engine reads of a turn besides its text: thoughts, tool calls and tool results."""
    if content is None or isinstance(content, str):
        return 0
    return sum(
        utf8_bytes(block.thinking or "") + utf8_bytes(_tool_result(block.content)) + size(block.input)
        for block in content
    )


def _tool_result(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))
