"""OpenAI's chat and text completions: what the gateway reads of a request."""

from typing import Annotated, Any

import msgspec

from gateway.errors import InvalidRequest
from gateway.protocol.generation_request import (
    ABSENT,
    GenerationRequest,
    Tokens,
    decode,
    decode_each,
    number,
    size,
    utf8_bytes,
)
from gateway.protocol.prompt_prefixes import prompt_prefixes

MAX_SEQUENCES = 1024
"""Largest number of answers that one request may ask for: prompts x n."""

_Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQUENCES)]


class _ContentPart(msgspec.Struct):
    text: str | None = None


class _ChatMessage(msgspec.Struct):
    role: str
    content: str | list[_ContentPart] | None = None
    tool_calls: msgspec.Raw = ABSENT


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _CommonFields(msgspec.Struct):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    n: _Count | None = None
    max_tokens: Tokens | None = None
    # The engine checks these fields. The gateway accepts any type.
    temperature: Any = None
    stop: Any = None
    reasoning_effort: Any = None
    response_format: msgspec.Raw = ABSENT


class _ChatBody(_CommonFields, kw_only=True):
    messages: list[msgspec.Raw]
    max_completion_tokens: Tokens | None = None
    tools: msgspec.Raw = ABSENT


class _CompletionBody(_CommonFields, kw_only=True):
    prompt: str | list[str | int | list[int]]


_chat_decoder = msgspec.json.Decoder(_ChatBody)
_message_decoder = msgspec.json.Decoder(_ChatMessage)
_completion_decoder = msgspec.json.Decoder(_CompletionBody)


def read_chat(body: bytes) -> GenerationRequest:
    """Read a `/v1/chat/completions` body.

    Raises:
        InvalidRequest: not JSON, or a field that the gateway uses is missing or has the wrong type; `param` names it.
    """
    chat = decode(_chat_decoder, body)
    messages = decode_each(_message_decoder, chat.messages, "messages")
    roles = [message.role for message in messages]
    texts = [text_of(message.content) for message in messages]
    tools_bytes = size(chat.tools)
    tool_call_bytes = sum([size(message.tool_calls) for message in messages])
    request = _request(body, chat)
    request.max_tokens = chat.max_completion_tokens or chat.max_tokens
    request.text_bytes = sum(map(utf8_bytes, texts)) + tools_bytes + tool_call_bytes
    request.system = system_prompt(roles, texts)
    request.last_user = last_user_text(roles, texts)
    request.message_count = len(messages)
    request.tools_bytes = tools_bytes
    request.message_prefixes = prompt_prefixes(body, roles, chat.messages, chat.tools)
    return request


def read_completion(body: bytes) -> GenerationRequest:
    """Read a `/v1/completions` body: a prompt, a list of prompts, token ids, or a list of lists of token ids.

    Raises:
        InvalidRequest: as for `read_chat`.
    """
    completion = decode(_completion_decoder, body)
    prompts = [completion.prompt] if isinstance(completion.prompt, str) else completion.prompt
    texts = [item for item in prompts if isinstance(item, str)]
    ids = [item for item in prompts if isinstance(item, int)]
    id_lists = [item for item in prompts if isinstance(item, list)]
    if not prompts:
        raise InvalidRequest("prompt: must not be empty", param="prompt")
    if bool(texts) + bool(ids) + bool(id_lists) != 1:
        raise InvalidRequest("prompt: must be either text or token ids, not both", param="prompt")
    request = _request(body, completion, prompts=1 if ids else len(prompts))
    request.text_bytes = sum(map(utf8_bytes, texts))
    request.prompt_tokens = None if texts else len(ids) + sum(map(len, id_lists))
    request.last_user = texts[-1] if texts else None
    request.batchable = True
    return request


def text_of(content: str | list[Any] | None) -> str:
    """Return the text of a message; `content` is a text, or parts that have a `text`."""
    if isinstance(content, str):
        return content
    return "\n".join([part.text for part in content or () if part.text])


def system_prompt(roles: list[str], texts: list[str]) -> str | None:
    """Return the system prompt of a chat; None if it has none."""
    parts = [text for role, text in zip(roles, texts, strict=True) if role in {"system", "developer"}]
    return "\n".join(parts) or None


def last_user_text(roles: list[str], texts: list[str]) -> str | None:
    """Return the text of the user's last message; None if there is none."""
    for role, text in zip(reversed(roles), reversed(texts), strict=True):
        if role == "user":
            return text
    return None


def _request(body: bytes, common: _CommonFields, prompts: int = 1) -> GenerationRequest:
    """Return a request with the fields that both routes have; its prompt is still empty."""
    sequences = prompts * (common.n or 1)
    if sequences > MAX_SEQUENCES:
        raise InvalidRequest(f"n: {sequences} answers requested; at most {MAX_SEQUENCES} are allowed", param="n")
    options = common.stream_options
    return GenerationRequest(
        body=body,
        model=common.model,
        stream=bool(common.stream),
        includes_usage=bool(options and options.include_usage),
        user=common.user or common.safety_identifier or None,
        max_tokens=common.max_tokens,
        sequences=sequences,
        temperature=number(common.temperature),
        stop_count=len(common.stop) if isinstance(common.stop, list) else int(common.stop is not None),
        schema_bytes=size(common.response_format),
        reasoning_effort=common.reasoning_effort if isinstance(common.reasoning_effort, str) else None,
    )
