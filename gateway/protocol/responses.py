"""OpenAI's Responses: what the gateway reads of a request, of a whole answer and of a stream."""

from typing import Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocol.answers import Count, PromptDetails, Usage, answer_reader, failure_of
from gateway.protocol.generation_request import (
    ABSENT,
    MAX_MESSAGES,
    MAX_PARTS,
    GenerationRequest,
    RawFields,
    Reader,
    Tokens,
    check_count,
    number,
    odd_items,
    size,
    utf8_bytes,
)
from gateway.protocol.openai import Turns, last_user_text, odd_bytes, read_odd_turns, text_of
from gateway.protocol.typed_events import StreamEvent, TypedScanner, Vocabulary


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
    model: Any = None
    input: str | list[_InputItem] = ""
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
    cached_tokens: Count | None = None


class _ResponseUsage(msgspec.Struct):
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    input_tokens_details: _InputDetails | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    status: str | None = None
    usage: _ResponseUsage | None = None
    incomplete_details: _Incomplete | None = None
    error: Any = None


class _ResponseEvent(msgspec.Struct):
    type: str | None = None
    response: _Response | None = None
    error: Any = None
    message: Any = None


_reader = Reader(_ResponsesBody)
_read_answer = answer_reader(_Response)
_read_stream_event = answer_reader(_ResponseEvent)


def read_response_request(body: bytes) -> GenerationRequest:
    """Read a `/v1/responses` body.

    Raises:
        InvalidRequest: not a JSON object in UTF-8. Or `background` is true: the answer would stay on one engine, and
            the gateway could not return it later.
        BodyTooLarge: too many input items or content parts.
    """
    request, odd = _reader.read(body)
    if request.background:
        raise InvalidRequest(
            "background: must be false or absent, because the gateway does not store answers", param="background"
        )
    roles, texts, called_bytes = _read_input(request.input, odd)
    tools_bytes = size(request.tools)
    system = [request.instructions] if request.instructions else []
    system += [text for role, text in zip(roles, texts, strict=True) if role in {"system", "developer"}]
    effort = request.reasoning.effort if request.reasoning else None
    return GenerationRequest(
        body=body,
        model=request.model if isinstance(request.model, str) else "",
        stream=bool(request.stream),
        includes_usage=True,
        user=request.user or request.safety_identifier or None,
        max_tokens=request.max_output_tokens,
        limits_answer=request.max_output_tokens is not None or "max_output_tokens" in odd,
        sequences=1,
        text_bytes=sum(map(utf8_bytes, [request.instructions or "", *texts]))
        + called_bytes
        + tools_bytes
        + odd_bytes(odd, "instructions"),
        system="\n".join(system) or None,
        last_user=last_user_text(roles, texts),
        message_count=len(roles),
        temperature=number(request.temperature),
        tools_bytes=tools_bytes,
        schema_bytes=size(request.text.format) if request.text else 0,
        reasoning_effort=effort if isinstance(effort, str) else None,
        length_field="max_output_tokens",
    )


def _read_input(given: str | list[_InputItem], odd: RawFields) -> Turns:
    """Return the messages of the input. Tool calls and the results of tools count as other bytes."""
    if "input" in odd:
        items = odd_items(odd["input"])
        check_count(len(items), MAX_MESSAGES, "input")
        return read_odd_turns(items)
    if isinstance(given, str):
        return Turns(["user"], [given], 0)
    check_count(len(given), MAX_MESSAGES, "input")
    check_count(sum([len(item.content) for item in given if isinstance(item.content, list)]), MAX_PARTS, "input")
    called = [text for item in given for text in (item.arguments, item.output) if isinstance(text, str)]
    texts = [text_of(item.content) for item in given]
    return Turns([item.role or "" for item in given], texts, sum(map(utf8_bytes, called)))


def read_response(body: bytes) -> StreamEvent:
    """Read a whole answer.

    >>> cut = b'{"incomplete_details": {"reason": "max_output_tokens"}, "usage": {"output_tokens": 3}}'
    >>> read_response(cut).finish_reason
    'length'
    """
    return _answer_info(_read_answer(body))


def response_scanner(*, hide_usage: bool, answers: int = 1) -> TypedScanner:
    """Return a scanner for one stream. The API always reports token counts, so they are never hidden."""
    del hide_usage, answers
    return TypedScanner(_VOCABULARY)


def _read_event(payload: bytes) -> StreamEvent:
    event = _read_stream_event(payload)
    failure = failure_of(event.error)
    if event.type == "error":
        failure = failure or failure_of({"message": event.message, "type": event.type})
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
