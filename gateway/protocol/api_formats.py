"""The generation APIs: how the gateway reads their requests and answers, and how they report errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import GatewayError
from gateway.protocol.answers import AnswerInfo, read_answer
from gateway.protocol.anthropic import message_scanner, read_message, read_messages
from gateway.protocol.error_bodies import (
    anthropic_error,
    anthropic_error_event,
    openai_error,
    openai_error_event,
    response_error_event,
)
from gateway.protocol.generation_request import GenerationRequest
from gateway.protocol.openai import read_chat, read_completion
from gateway.protocol.responses import read_response, read_response_request, response_scanner
from gateway.protocol.sse import StreamScanner


class _MakeScanner(Protocol):
    def __call__(self, *, hide_usage: bool, answers: int = 1) -> StreamScanner: ...


@dataclass(frozen=True, slots=True)
class ApiFormat:
    """One generation API. Engines serve it under the same path as the gateway.

    Args:
        path: of the route.
        read_request: decodes the body of a request.
        read_answer: decodes a whole answer; what it does not understand counts as unknown.
        scanner: makes the scanner of one stream.
        error: encodes an error as a response body.
        error_event: encodes an error as the last event of a stream that has started.
    """

    path: str
    read_request: Callable[[bytes], GenerationRequest]
    read_answer: Callable[[bytes], AnswerInfo] = read_answer
    scanner: _MakeScanner = StreamScanner
    error: Callable[[GatewayError], bytes] = openai_error
    error_event: Callable[[GatewayError], bytes] = openai_error_event


CHAT = ApiFormat("/v1/chat/completions", read_chat)
COMPLETIONS = ApiFormat("/v1/completions", read_completion)
RESPONSES = ApiFormat(
    "/v1/responses", read_response_request, read_response, response_scanner, error_event=response_error_event
)
MESSAGES = ApiFormat(
    "/v1/messages", read_messages, read_message, message_scanner, anthropic_error, anthropic_error_event
)
GENERATION_FORMATS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES)
