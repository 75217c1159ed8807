"""How each API words its answers, its streams and its errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gateway.errors import GatewayError
from gateway.protocol.answers import AnswerInfo, read_answer
from gateway.protocol.anthropic import message_scanner, read_message
from gateway.protocol.error_bodies import (
    anthropic_error,
    anthropic_error_event,
    openai_error,
    openai_error_event,
    response_error_event,
)
from gateway.protocol.responses import read_response, response_scanner
from gateway.protocol.sse import StreamScanner


class _MakeScanner(Protocol):
    def __call__(self, *, hide_usage: bool) -> StreamScanner: ...


@dataclass(frozen=True, slots=True)
class ApiFormat:
    """What is read of an API's answers, and how an error is told in it.

    Args:
        read_answer: of a whole answer; None where the body is not one.
        scanner: of a stream.
        error: the body of an error.
        error_event: the event that ends a stream which has failed after it began.
    """

    read_answer: Callable[[bytes], AnswerInfo | None]
    scanner: _MakeScanner
    error: Callable[[GatewayError], bytes]
    error_event: Callable[[GatewayError], bytes]


COMPLETIONS = ApiFormat(read_answer, StreamScanner, openai_error, openai_error_event)
RESPONSES = ApiFormat(read_response, response_scanner, openai_error, response_error_event)
ANTHROPIC = ApiFormat(read_message, message_scanner, anthropic_error, anthropic_error_event)
