"""vLLM's request bodies (only the fields in use) and response bodies."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.simulator.asgi import HttpError
from backends.simulator.loop import Choice
from backends.simulator.sse import ChunkTemplate
from backends.simulator.text import text_of
from backends.simulator.workload import Message

DEFAULT_COMPLETION_TOKENS = 16


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool | None = False
    continuous_usage_stats: bool | None = False


class GenerationRequest(msgspec.Struct, kw_only=True):
    """The common fields of chat and text completions."""

    model: str | None = None
    max_tokens: int | None = None
    n: int | None = 1
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    priority: int = 0

    @property
    def output_limit(self) -> int | None:
        """Largest number of tokens that the client asks for; None leaves it to the context length."""
        return self.max_tokens


class ChatRequest(GenerationRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[Message]
    max_completion_tokens: int | None = None

    @property
    def output_limit(self) -> int | None:
        """`max_completion_tokens`, or its older name `max_tokens`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(GenerationRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int | None = DEFAULT_COMPLETION_TOKENS


class TokenizeRequest(msgspec.Struct):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None
    return_token_strs: bool | None = False

    @property
    def text(self) -> str:
        """The prompt, or the text of all messages."""
        return self.prompt or "".join(message.text for message in self.messages or [])


class DetokenizeRequest(msgspec.Struct):
    """`POST /detokenize`."""

    tokens: list[int]
    model: str | None = None


def vllm_error(status: int, kind: str, message: str, param: str | None = None) -> HttpError:
    """Return an error in vLLM's format."""
    return HttpError(status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


def bad_request(message: str, param: str | None = None, value: int | None = None) -> HttpError:
    """Return a 400. vLLM repeats the wrong parameter and its value at the end of the message."""
    if param is not None and value is not None:
        message = f"{message} (parameter={param}, value={value})"
    return vllm_error(400, "BadRequestError", message, param)


def usage(choices: list[Choice], prompts: int) -> dict[str, Any]:
    """Return the usage of a request, summed over its choices. A prompt with several choices counts once."""
    prompt_tokens = sum(choice.sequence.prompt_tokens for choice in choices[:: len(choices) // prompts])
    completion_tokens = sum(choice.produced for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
    }


@dataclass(frozen=True, slots=True)
class Envelope:
    """The common fields of all bodies of one response."""

    id: str
    model: str
    created: int
    chat: bool

    @classmethod
    def new(cls, request_id: str, model: str, *, chat: bool) -> "Envelope":
        """Return the envelope of a response that starts now."""
        return cls(f"{'chatcmpl' if chat else 'cmpl'}-{request_id}", model, int(time.time()), chat)

    def template(self, *, with_usage: bool) -> ChunkTemplate:
        """Return the template of the token events. `with_usage` is vLLM's `continuous_usage_stats`."""
        before, after = (',"delta":{"content":"', '"}') if self.chat else (',"text":"', '"')
        return ChunkTemplate(
            opening=f'{self._chunk_head()},"choices":[{{"index":',
            before_text=before,
            after_text=f'{after},"logprobs":null,"finish_reason":',
            closing=',"stop_reason":null,"token_ids":null}]',
            with_usage=with_usage,
        )

    def role_events(self, choices: int) -> str:
        """Return the first event of each choice of a chat. A text completion has none."""
        if not self.chat:
            return ""
        return "".join(
            f'{self._chunk_head()},"choices":[{{"index":{index},"delta":{{"role":"assistant","content":""}},'
            '"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}\n\n'
            for index in range(choices)
        )

    def usage_event(self, counts: dict[str, Any]) -> str:
        """Return the last event of a stream with `include_usage`."""
        return f'{self._chunk_head()},"choices":[],"usage":{msgspec.json.encode(counts).decode()}}}\n\n'

    def body(self, choices: list[Choice], counts: dict[str, Any]) -> dict[str, Any]:
        """Return the whole answer."""
        return {
            "id": self.id,
            "object": "chat.completion" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "index": index,
                    **(_message(choice) if self.chat else {"text": text_of(choice.produced)}),
                    "logprobs": None,
                    "finish_reason": choice.finish_reason,
                    "stop_reason": None,
                    "token_ids": None,
                }
                for index, choice in enumerate(choices)
            ],
            "service_tier": None,
            "system_fingerprint": None,
            "usage": counts,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "kv_transfer_params": None,
        }

    def _chunk_head(self) -> str:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        names = msgspec.json.encode({"id": self.id, "object": kind, "created": self.created, "model": self.model})
        return f"data: {names.decode()[:-1]}"


def _message(choice: Choice) -> dict[str, Any]:
    return {
        "message": {
            "role": "assistant",
            "content": text_of(choice.produced),
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
    }
