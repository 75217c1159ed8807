"""OpenAI's Responses: what the gateway reads of a request, of a whole answer and of a stream."""

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocol.answers import PromptDetails, Usage, decode_or_none
from gateway.protocol.generation_request import ABSENT, GenerationRequest, Tokens, decode, number, size, utf8_bytes
from gateway.protocol.openai import last_user_text, text_of
from gateway.protocol.typed_events import ErrorObject, StreamEvent, TypedScanner, Vocabulary, failure_of


class _InputPart(msgspec.Struct):
    text: str | None = None


class _InputItem(msgspec.Struct):
    """One item of the input: a message, a tool call (`arguments`) or the result of a tool (`output`)."""

    role: str | None = None
    content: str | list[_InputPart] | None = None
    arguments: Any = None
    output: Any = None


class _Reasoning(msgspec.Struct):
    effort: Any = None


class _TextConfig(msgspec.Struct):
    format: msgspec.Raw = ABSENT


class _ResponsesBody(msgspec.Struct):
    model: str
    input: str | list[_InputItem]
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


class _ResponseUsage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    usage: _ResponseUsage | None = None
    incomplete_details: _Incomplete | None = None
    error: ErrorObject | str | None = None


class _ResponseEvent(msgspec.Struct):
    type: str | None = None
    response: _Response | None = None
    error: ErrorObject | str | None = None
    message: str | None = None


_request_decoder = msgspec.json.Decoder(_ResponsesBody)
_answer_decoder = msgspec.json.Decoder(_Response)
_event_decoder = msgspec.json.Decoder(_ResponseEvent)


def read_response_request(body: bytes) -> GenerationRequest:
    """Read a `/v1/responses` body.

    Raises:
        InvalidRequest: not JSON, or a field that the gateway uses is missing or has the wrong type; `param` names it.
            Or `background` is true: the answer would stay on one engine, and the gateway could not return it later.
    """
    request = decode(_request_decoder, body)
    if request.background:
        raise InvalidRequest(
            "background: must be false or absent, because the gateway does not store answers", param="background"
        )
    items = [_InputItem("user", request.input)] if isinstance(request.input, str) else request.input
    roles, texts = [item.role or "" for item in items], [text_of(item.content) for item in items]
    tools_bytes = size(request.tools)
    called = [text for item in items for text in (item.arguments, item.output) if isinstance(text, str)]
    system = [request.instructions] if request.instructions else []
    system += [text for role, text in zip(roles, texts, strict=True) if role in {"system", "developer"}]
    read = [request.instructions or "", *texts, *called]
    effort = request.reasoning.effort if request.reasoning else None
    return GenerationRequest(
        body=body,
        model=request.model,
        stream=bool(request.stream),
        includes_usage=True,
        user=request.user or request.safety_identifier or None,
        max_tokens=request.max_output_tokens,
        sequences=1,
        text_bytes=sum(map(utf8_bytes, read)) + tools_bytes,
        system="\n".join(system) or None,
        last_user=last_user_text(roles, texts),
        message_count=len(items),
        temperature=number(request.temperature),
        tools_bytes=tools_bytes,
        schema_bytes=size(request.text.format) if request.text else 0,
        reasoning_effort=effort if isinstance(effort, str) else None,
        length_field="max_output_tokens",
    )


def read_response(body: bytes) -> StreamEvent | None:
    """Decode a whole answer; return None if the body is not one.

    >>> cut = b'{"incomplete_details": {"reason": "max_output_tokens"}, "usage": {"output_tokens": 3}}'
    >>> read_response(cut).finish_reason
    'length'
    """
    answer = decode_or_none(_answer_decoder, body)
    return None if answer is None else _answer_info(answer)


def response_scanner(*, hide_usage: bool) -> TypedScanner:
    """Return a scanner for one stream. The API always reports token counts, so they are never hidden."""
    del hide_usage
    return TypedScanner(_VOCABULARY)


def _read_event(payload: bytes) -> StreamEvent | None:
    event = decode_or_none(_event_decoder, payload)
    if event is None:
        return None
    failure = failure_of(event.error) or (event.message if event.type == "error" else None)
    if failure is not None:
        return StreamEvent(failure=failure)
    if event.type in _ENDS:
        info = _answer_info(event.response or _Response(status=event.type.removeprefix("response.")))
        return StreamEvent(usage=info.usage, finish_reason=info.finish_reason, failure=info.failure, last=True)
    return StreamEvent(token=event.type in _PIECES)


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


def _answer_info(answer: _Response) -> StreamEvent:
    failure = failure_of(answer.error)
    if answer.status == "failed":
        failure = failure or "no reason given"
    cut = answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    return StreamEvent(usage=_usage(answer.usage), finish_reason="length" if cut else "stop", failure=failure)


def _usage(reported: _ResponseUsage | None) -> Usage | None:
    if reported is None:
        return None
    details = reported.input_tokens_details
    cached = None if details is None or details.cached_tokens is None else PromptDetails(details.cached_tokens)
    return Usage(reported.input_tokens, reported.output_tokens, cached)
