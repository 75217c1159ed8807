"""The fields of a request that the gateway uses; everything else stays in the bytes, untouched.

The API's schema is not declared again here: an engine knows it better. What is decoded is what prediction and
scheduling need, and it is checked only as far as they rely on it.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocol.json_fields import ABSENT, Tokens, decode, number, size, utf8_bytes

MAX_SEQUENCES = 1024
"""Upper bound on the answers that one request asks for: prompts x n."""


@dataclass(frozen=True, slots=True)
class Generation:
    """What one generation request asks for.

    `text_bytes` is the UTF-8 size of the prompt's text; `prompt_tokens` is set where the prompt came as token ids.
    `sequences` counts the answers asked for. `includes_usage` tells that a stream's client wants the usage chunk. What
    is from `message_count` on says something of the answer's length; `schema_bytes` is the size of a response format.
    """

    model: str
    stream: bool
    includes_usage: bool
    user: str | None
    max_tokens: int | None
    sequences: int
    text_bytes: int
    prompt_tokens: int | None
    system: str | None
    last_user: str | None
    message_count: int = 1
    temperature: float | None = None
    stop_count: int = 0
    tools_bytes: int = 0
    schema_bytes: int = 0
    reasoning_effort: str | None = None


_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCES)]


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: msgspec.Raw = ABSENT


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    n: _Count | None = None
    max_tokens: Tokens | None = None
    # Only looked at, so of any shape: whether they are right is the engine's to say.
    temperature: Any = None
    stop: Any = None
    reasoning_effort: Any = None
    response_format: msgspec.Raw = ABSENT


class _Chat(_Common, kw_only=True):
    messages: list[_Message]
    max_completion_tokens: Tokens | None = None
    tools: msgspec.Raw = ABSENT


class _Completion(_Common, kw_only=True):
    prompt: str | list[str | int | list[int]]


_chat_decoder = msgspec.json.Decoder(_Chat)
_completion_decoder = msgspec.json.Decoder(_Completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """What the two routes give in different shapes; `count` prompts, summed."""

    count: int = 1
    text_bytes: int
    tokens: int | None = None
    system: str | None = None
    last_user: str | None = None
    message_count: int = 1
    tools_bytes: int = 0


def read_chat(body: bytes) -> Generation:
    """Read a `/v1/chat/completions` body.

    Raises:
        InvalidRequest: not JSON, or a field that we use is missing or of the wrong type; `param` names it.
    """
    chat = decode(_chat_decoder, body)
    texts = [_text(message.content) for message in chat.messages]
    by_role = [(message.role, text) for message, text in zip(chat.messages, texts, strict=True)]
    tools_bytes = size(chat.tools)
    called_bytes = sum(size(message.tool_calls) for message in chat.messages)
    prompt = _Prompt(
        text_bytes=sum(map(utf8_bytes, texts)) + tools_bytes + called_bytes,
        system="\n".join(text for role, text in by_role if role in {"system", "developer"}) or None,
        last_user=next((text for role, text in reversed(by_role) if role == "user"), None),
        message_count=len(texts),
        tools_bytes=tools_bytes,
    )
    return _generation(chat, prompt, chat.max_completion_tokens or chat.max_tokens)


def read_completion(body: bytes) -> Generation:
    """Read a `/v1/completions` body: a prompt, a list of prompts, token ids, or a list of them.

    Raises:
        InvalidRequest: as for `read_chat`.
    """
    completion = decode(_completion_decoder, body)
    items = [completion.prompt] if isinstance(completion.prompt, str) else completion.prompt
    texts = [item for item in items if isinstance(item, str)]
    ids = [item for item in items if isinstance(item, int)]
    id_lists = [item for item in items if isinstance(item, list)]
    if not items:
        raise InvalidRequest("prompt must not be empty", param="prompt")
    if bool(texts) + bool(ids) + bool(id_lists) != 1:
        raise InvalidRequest("prompt mixes text and token ids", param="prompt")
    prompt = _Prompt(
        count=1 if ids else len(items),
        text_bytes=sum(map(utf8_bytes, texts)),
        tokens=None if texts else len(ids) + sum(map(len, id_lists)),
        last_user=texts[-1] if texts else None,
    )
    return _generation(completion, prompt, completion.max_tokens)


def _generation(common: _Common, prompt: _Prompt, max_tokens: int | None) -> Generation:
    sequences = prompt.count * (common.n or 1)
    if sequences > MAX_SEQUENCES:
        raise InvalidRequest(f"{sequences} answers asked for; at most {MAX_SEQUENCES}", param="n")
    options = common.stream_options
    return Generation(
        model=common.model,
        stream=bool(common.stream),
        includes_usage=bool(options and options.include_usage),
        user=common.user or common.safety_identifier or None,
        max_tokens=max_tokens,
        sequences=sequences,
        text_bytes=prompt.text_bytes,
        prompt_tokens=prompt.tokens,
        system=prompt.system,
        last_user=prompt.last_user,
        message_count=prompt.message_count,
        temperature=number(common.temperature),
        stop_count=len(common.stop) if isinstance(common.stop, list) else int(common.stop is not None),
        tools_bytes=prompt.tools_bytes,
        schema_bytes=size(common.response_format),
        reasoning_effort=common.reasoning_effort if isinstance(common.reasoning_effort, str) else None,
    )


def _text(content: str | list[_Part] | None) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)
