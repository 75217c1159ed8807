"""OpenAI's Responses: what the gateway reads of a request, and what answers and streams say of themselves."""

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocol.answers import PromptDetails, Usage
from gateway.protocol.fields import Generation
from gateway.protocol.json_fields import ABSENT, Tokens, decode, decode_or_none, number, size, utf8_bytes
from gateway.protocol.typed_events import ErrorObject, Event, TypedScanner, Vocabulary, failure_of


class _Part(msgspec.Struct):
    text: str | None = None


class _Item(msgspec.Struct):
    """One item of the input: a message, a tool's call (`arguments`) or its result (`output`)."""

    role: str | None = None
    content: str | list[_Part] | None = None
    arguments: Any = None
    output: Any = None


class _Reasoning(msgspec.Struct):
    effort: Any = None


class _TextConfig(msgspec.Struct):
    format: msgspec.Raw = ABSENT


class _Request(msgspec.Struct):
    model: str
    input: str | list[_Item]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    stream: bool | None = None
    background: bool | None = None
    user: str | None = None
    safety_identifier: str | None = None
    tools: msgspec.Raw = ABSENT
    reasoning: _Reasoning | None = None
    text: _TextConfig | None = None
    temperature: Any = None


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Answer(msgspec.Struct):
    status: str | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: ErrorObject | str | None = None


class _Event(msgspec.Struct):
    type: str | None = None
    response: _Answer | None = None
    error: ErrorObject | str | None = None
    message: str | None = None


_request_decoder = msgspec.json.Decoder(_Request)
_answer_decoder = msgspec.json.Decoder(_Answer)
_event_decoder = msgspec.json.Decoder(_Event)


def read_response_request(body: bytes) -> Generation:
    """Read a `/v1/responses` body.

    Raises:
        InvalidRequest: not JSON, or a field that we use is missing or of the wrong type; `param` names it. Or it asks
            for an answer in the background, which nobody could fetch: it stays with whichever engine made it.
    """
    request = decode(_request_decoder, body)
    if request.background:
        raise InvalidRequest("background: answers are not kept, so none can be fetched later", param="background")
    items = [_Item("user", request.input)] if isinstance(request.input, str) else request.input
    texts = [(item.role, _text(item.content)) for item in items]
    tools_bytes = size(request.tools)
    called = [text for item in items for text in (item.arguments, item.output) if isinstance(text, str)]
    system = [request.instructions] if request.instructions else []
    system += [text for role, text in texts if role in {"system", "developer"}]
    read = [request.instructions or "", *(text for _, text in texts), *called]
    effort = request.reasoning.effort if request.reasoning else None
    return Generation(
        model=request.model,
        stream=bool(request.stream),
        includes_usage=True,
        user=request.user or request.safety_identifier or None,
        max_tokens=request.max_output_tokens,
        sequences=1,
        text_bytes=sum(map(utf8_bytes, read)) + tools_bytes,
        prompt_tokens=None,
        system="\n".join(system) or None,
        last_user=next((text for role, text in reversed(texts) if role == "user"), None),
        message_count=len(items),
        temperature=number(request.temperature),
        tools_bytes=tools_bytes,
        schema_bytes=size(request.text.format) if request.text else 0,
        reasoning_effort=effort if isinstance(effort, str) else None,
    )


def read_response(body: bytes) -> Event | None:
    """Decode a whole answer, or return None where it is not one.

    >>> cut = b'{"incomplete_details": {"reason": "max_output_tokens"}, "usage": {"output_tokens": 3}}'
    >>> read_response(cut).finish_reason
    'length'
    """
    answer = decode_or_none(_answer_decoder, body)
    return None if answer is None else _told(answer)


def response_scanner(*, hide_usage: bool) -> TypedScanner:
    """Return the scanner of one stream; its usage is part of the API and never hidden."""
    del hide_usage
    return TypedScanner(_VOCABULARY)


def _read_event(payload: bytes) -> Event | None:
    event = decode_or_none(_event_decoder, payload)
    if event is None:
        return None
    failure = failure_of(event.error) or (event.message if event.type == "error" else None)
    if failure is not None:
        return Event(failure=failure)
    if event.type in _ENDS:
        told = _told(event.response or _Answer(status=event.type.removeprefix("response.")))
        return Event(usage=told.usage, finish_reason=told.finish_reason, failure=told.failure, last=True)
    return Event(token=event.type in _PIECES)


_PIECES = {
    "response.output_text.delta",
    "response.reasoning_text.delta",
    "response.function_call_arguments.delta",
}
_ENDS = {"response.completed", "response.incomplete", "response.failed"}
_VOCABULARY = Vocabulary(
    pieces=tuple(f'"{piece}"'.encode() for piece in sorted(_PIECES)),
    marks=(b'"response":', b'"error"', b"[DONE]"),
    read=_read_event,
)


def _told(answer: _Answer) -> Event:
    failure = failure_of(answer.error)
    if answer.status == "failed":
        failure = failure or "no reason given"
    cut = answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    return Event(usage=_usage(answer.usage), finish_reason="length" if cut else "stop", failure=failure)


def _usage(told: _Usage | None) -> Usage | None:
    if told is None:
        return None
    details = told.input_tokens_details
    cached = None if details is None or details.cached_tokens is None else PromptDetails(details.cached_tokens)
    return Usage(told.input_tokens, told.output_tokens, cached)


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)
