"""Request and response bodies of Anthropic's routes, as vLLM serves them."""

from dataclasses import dataclass
from typing import Any

import msgspec

from backends.simulator.asgi import HttpError
from backends.simulator.loop import Choice
from backends.simulator.text import WORDS, text_of
from backends.simulator.vllm_schema import ChatRequest
from backends.simulator.workload import ContentPart, Message


class MessagesRequest(msgspec.Struct, kw_only=True):
    """`POST /v1/messages`. It has no priority, and no `ignore_eos`."""

    model: str
    messages: list[Message]
    max_tokens: int
    system: str | list[ContentPart] | None = None
    stream: bool | None = False

    def as_chat(self) -> ChatRequest:
        """Return the chat that vLLM makes of the request. The system prompt becomes the first message."""
        system = [] if self.system is None else [Message("system", self.system)]
        return ChatRequest(
            model=self.model, messages=[*system, *self.messages], max_tokens=self.max_tokens, stream=self.stream
        )


class CountTokensRequest(msgspec.Struct, kw_only=True):
    """`POST /v1/messages/count_tokens`."""

    model: str
    messages: list[Message]
    system: str | list[ContentPart] | None = None


def to_anthropic_error(error: HttpError) -> HttpError:
    """Return vLLM's error in Anthropic's format, which has neither code nor parameter."""
    match error.body:
        case {"error": {"type": kind, "message": message}}:
            return HttpError(error.status, {"type": "error", "error": {"type": kind, "message": message}})
        case _:
            return error


@dataclass(frozen=True, slots=True)
class MessageEnvelope:
    """The common fields of all bodies of one message. vLLM uses the id of the chat."""

    id: str
    model: str

    def opening(self, choice: Choice) -> str:
        """Return the events before the first token."""
        message: dict[str, Any] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": choice.sequence.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}, "index": 0}
        return _event({"type": "message_start", "message": message}) + _event(block)

    def event(self, index: int, choice: Choice, token: int) -> str:
        """Return the event of one token."""
        word = WORDS[token % len(WORDS)]
        delta = f'{{"type":"text_delta","text":"{word}"}}'
        data = f'{{"type":"content_block_delta","delta":{delta},"index":{index}}}'
        return f"event: content_block_delta\ndata: {data}\n\n"

    def ending(self, choice: Choice) -> str:
        """Return the events after the last token. Anthropic's streams have no `[DONE]`."""
        delta = {"stop_reason": _stop_reason(choice), "stop_sequence": None}
        return (
            _event({"type": "content_block_stop", "index": 0})
            + _event({"type": "message_delta", "delta": delta, "usage": _usage(choice)})
            + _event({"type": "message_stop"})
        )

    def failure(self, message: str) -> str:
        """Return the event that ends a failed stream."""
        return _event({"type": "error", "error": {"type": "internal_error", "message": message}})

    def body(self, choice: Choice) -> dict[str, Any]:
        """Return the whole answer."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [{"type": "text", "text": text_of(choice.produced)}],
            "model": self.model,
            "stop_reason": _stop_reason(choice),
            "usage": _usage(choice),
        }


def _usage(choice: Choice) -> dict[str, int]:
    return {
        "input_tokens": choice.sequence.prompt_tokens,
        "output_tokens": choice.produced,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }


def _stop_reason(choice: Choice) -> str:
    return "max_tokens" if choice.finish_reason == "length" else "end_turn"


def _event(data: dict[str, Any]) -> str:
    return f"event: {data['type']}\ndata: {msgspec.json.encode(data).decode()}\n\n"
