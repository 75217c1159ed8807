"""TGI's request bodies (only the fields in use) and response bodies."""

import time
from dataclasses import dataclass
from typing import Any

import msgspec

from backends.simulator.asgi import HttpError
from backends.simulator.loop import Choice
from backends.simulator.prompts import Prompt, chat_prompt, text_prompt
from backends.simulator.sse import ChunkTemplate
from backends.simulator.text import WORDS, text_of
from backends.simulator.workload import Message

DEFAULT_NEW_TOKENS = 1024

FINGERPRINT = "3.3.7-native"

_ERROR_STATUS = {"validation": 422, "generation": 424, "overloaded": 429, "incomplete_generation": 500}


class Parameters(msgspec.Struct):
    """The sampling parameters of the native routes."""

    max_new_tokens: int | None = None
    details: bool = False


class GenerateRequest(msgspec.Struct):
    """`POST /generate`, `/generate_stream` and `/`."""

    inputs: str
    parameters: Parameters = msgspec.field(default_factory=Parameters)
    stream: bool = False

    @property
    def output_limit(self) -> int | None:
        """Largest number of tokens that the client asks for."""
        return self.parameters.max_new_tokens

    def prompt(self) -> Prompt:
        """Return the prompt."""
        return text_prompt(self.inputs)


class StreamOptions(msgspec.Struct):
    """Options of a stream."""

    include_usage: bool = False


class OpenAiRequest(msgspec.Struct, kw_only=True):
    """The common fields of OpenAI's routes."""

    max_tokens: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def output_limit(self) -> int | None:
        """Largest number of tokens that the client asks for."""
        return self.max_tokens


class ChatRequest(OpenAiRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[Message]

    def prompts(self) -> list[Prompt]:
        """Return the prompt of the chat, as a list."""
        return [chat_prompt(self.messages)]


class CompletionRequest(OpenAiRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str]

    def prompts(self) -> list[Prompt]:
        """Return the prompts."""
        return [text_prompt(text) for text in ([self.prompt] if isinstance(self.prompt, str) else self.prompt)]


def tgi_error(kind: str, message: str) -> HttpError:
    """Return an error in TGI's format, with the status of its type."""
    return HttpError(_ERROR_STATUS[kind], {"error": message, "error_type": kind})


@dataclass(frozen=True, slots=True)
class NativeTemplate:
    """The events of `/generate_stream`. The last event has the text and, from version 2, the number of input tokens."""

    with_input_length: bool = True

    def event(self, index: int, choice: Choice, token: int) -> str:
        """Return the event of one token."""
        last = token == choice.sequence.answer_tokens - 1
        ending = self._ending(choice) if last else '"generated_text":null,"details":null'
        text = WORDS[token % len(WORDS)]
        fields = f'"id":{token % len(WORDS)},"text":"{text}","logprob":-1.0,"special":false'
        return f'data:{{"index":{token + 1},"token":{{{fields}}},"top_tokens":[],{ending}}}\n\n'

    def _ending(self, choice: Choice) -> str:
        """Return the fields of the last event, as JSON without braces."""
        details = {"finish_reason": native_reason(choice), "generated_tokens": choice.produced, "seed": None}
        if self.with_input_length:
            details |= {"input_length": choice.sequence.prompt_tokens}
        ending = {"generated_text": text_of(choice.produced), "details": details}
        return msgspec.json.encode(ending).decode()[1:-1]


def native_body(choice: Choice, *, details: bool) -> dict[str, Any]:
    """Return the answer of `/generate`."""
    counts = {
        "finish_reason": native_reason(choice),
        "generated_tokens": choice.produced,
        "seed": None,
        "prefill": [],
        "tokens": [],
    }
    return {"generated_text": text_of(choice.produced), "details": counts if details else None}


def native_reason(choice: Choice) -> str:
    """Return the finish reason in TGI's native format."""
    return "length" if choice.finish_reason == "length" else "eos_token"


def usage(choices: list[Choice]) -> dict[str, int]:
    """Return the usage of a request, summed over its choices."""
    prompt_tokens = sum(choice.sequence.prompt_tokens for choice in choices)
    completion_tokens = sum(choice.produced for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


@dataclass(frozen=True, slots=True)
class Envelope:
    """The common fields of all bodies of one response on OpenAI's routes. TGI leaves the id empty."""

    model: str
    created: int
    chat: bool

    @classmethod
    def new(cls, model: str, *, chat: bool) -> "Envelope":
        """Return the envelope of a response that starts now."""
        return cls(model, int(time.time()), chat)

    def template(self) -> ChunkTemplate:
        """Return the template of the token events."""
        chat = (',"delta":{"role":"assistant","content":"', '"}')
        before, after = chat if self.chat else (',"text":"', '"')
        return ChunkTemplate(
            opening=f'data: {self._head(chunk=True)},"choices":[{{"index":',
            before_text=before,
            after_text=f'{after},"logprobs":null,"finish_reason":',
            closing='}],"usage":null' if self.chat else "}]",
        )

    def usage_event(self, choices: list[Choice]) -> str:
        """Return the last event of a stream with `include_usage`."""
        counts = msgspec.json.encode(usage(choices)).decode()
        return f'data: {self._head(chunk=True)},"choices":[],"usage":{counts}}}\n\n'

    def body(self, choices: list[Choice]) -> dict[str, Any]:
        """Return the whole answer."""
        answers = [
            {
                "index": index,
                **(_message(choice) if self.chat else {"text": text_of(choice.produced)}),
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(choices)
        ]
        return {**self._fields(chunk=False), "choices": answers, "usage": usage(choices)}

    def _head(self, *, chunk: bool) -> str:
        return msgspec.json.encode(self._fields(chunk=chunk)).decode()[:-1]

    def _fields(self, *, chunk: bool) -> dict[str, Any]:
        chat_kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {
            "object": chat_kind if self.chat else "text_completion",
            "id": "",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


def _message(choice: Choice) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text_of(choice.produced)}}
