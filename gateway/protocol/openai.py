"""OpenAI's chat and text completions: what the gateway reads of a request."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

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
    odd_fields,
    odd_items,
    odd_value,
    size,
    utf8_bytes,
)

MAX_SEQUENCES = MAX_MESSAGES
"""Most answers that the gateway plans for one request: prompts x n. A request for more counts as one for this many."""

LIMIT_FIELDS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""The fields that limit an answer, in any API."""


class _ContentPart(msgspec.Struct):
    text: str | None = None


class _ChatMessage(msgspec.Struct):
    role: str = ""
    content: str | list[_ContentPart] | None = None
    tool_calls: msgspec.Raw = ABSENT


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _CommonFields(msgspec.Struct):
    model: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    n: int | None = None
    max_tokens: Tokens | None = None
    temperature: Any = None
    stop: Any = None
    reasoning_effort: Any = None
    response_format: msgspec.Raw = ABSENT


class _ChatBody(_CommonFields, kw_only=True):
    messages: list[msgspec.Raw] = []
    max_completion_tokens: Tokens | None = None
    tools: msgspec.Raw = ABSENT


class _CompletionBody(_CommonFields, kw_only=True):
    prompt: str | list[str | int | list[int]] | None = None


class Turns(NamedTuple):
    """The messages of a request.

    Attributes:
        roles: of each message; empty if it has none.
        texts: of each message.
        other_bytes: size of what the engine reads besides the texts.
    """

    roles: list[str]
    texts: list[str]
    other_bytes: int


_chat_reader = Reader(_ChatBody)
_completion_reader = Reader(_CompletionBody)
_message_decoder = msgspec.json.Decoder(_ChatMessage)


def read_chat(body: bytes) -> GenerationRequest:
    """Read a `/v1/chat/completions` body.

    Raises:
        InvalidRequest: not a JSON object in UTF-8.
        BodyTooLarge: too many messages or content parts.
    """
    chat, odd = _chat_reader.read(body)
    turns = _read_turns(chat.messages)
    tools_bytes = size(chat.tools)
    request = _request(body, chat, odd)
    request.max_tokens = chat.max_completion_tokens or chat.max_tokens
    request.limits_answer = request.limits_answer or request.max_tokens is not None
    request.text_bytes = (
        sum(map(utf8_bytes, turns.texts)) + tools_bytes + turns.other_bytes + odd_bytes(odd, "messages")
    )
    request.system = system_prompt(turns.roles, turns.texts)
    request.last_user = last_user_text(turns.roles, turns.texts)
    request.message_count = len(turns.roles)
    request.tools_bytes = tools_bytes
    request.message_prefixes = prompt_prefixes(body, turns.roles, chat.messages, chat.tools)
    return request


def read_completion(body: bytes) -> GenerationRequest:
    """Read a `/v1/completions` body: a prompt, a list of prompts, token ids, or a list of lists of token ids.

    Raises:
        InvalidRequest: as for `read_chat`.
        BodyTooLarge: too many prompts.
    """
    completion, odd = _completion_reader.read(body)
    prompt = completion.prompt
    prompts: list[Any] = [prompt or ""] if isinstance(prompt, str | None) else prompt
    texts = [item for item in prompts if isinstance(item, str)]
    ids = [item for item in prompts if isinstance(item, int)]
    id_lists = [item for item in prompts if isinstance(item, list)]
    is_mixed = bool(texts) + bool(ids) + bool(id_lists) > 1
    count = 1 if ids and not is_mixed else max(1, len(prompts))
    check_count(count, MAX_MESSAGES, "prompt")
    request = _request(body, completion, odd, prompts=count)
    request.text_bytes = len(body) if is_mixed else sum(map(utf8_bytes, texts)) + odd_bytes(odd, "prompt")
    request.prompt_tokens = len(ids) + sum(map(len, id_lists)) if (ids or id_lists) and not is_mixed else None
    request.last_user = texts[-1] if texts else None
    request.batchable = not odd
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


def odd_bytes(odd: RawFields, *fields: str) -> int:
    """Return the size of the JSON of those fields that have an unexpected shape."""
    return sum([size(odd[field]) for field in fields if field in odd])


def odd_turn(raw: msgspec.Raw) -> tuple[str, str, int]:
    r"""Return role, text and other bytes of a message that has an unexpected shape.

    >>> odd_turn(msgspec.Raw(b'{"role": "user", "content": ["a", {"text": "b"}, 7]}'))
    ('user', 'a\nb', 1)
    """
    fields = odd_fields(raw)
    if fields is None:
        return "", "", size(raw)
    role, content = odd_value(fields.pop("role", b"")), fields.pop("content", ABSENT)
    texts, other = [], sum(map(size, fields.values()))
    for part in odd_items(content):
        text = _text_of_part(odd_value(part))
        texts.append(text)
        other += size(part) if text is None else 0
    return role if isinstance(role, str) else "", "\n".join(filter(None, texts)), other


def _text_of_part(part: object) -> str | None:
    """Return the text of a content part: empty for a part without text, for example an image; None if it is odd."""
    text = part.get("text") or "" if isinstance(part, dict) else part
    return text if isinstance(text, str) else None


def _read_turns(messages: list[msgspec.Raw]) -> Turns:
    check_count(len(messages), MAX_MESSAGES, "messages")
    try:
        turns = [_message_decoder.decode(item) for item in messages]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return read_odd_turns(messages)
    check_count(sum([len(turn.content) for turn in turns if isinstance(turn.content, list)]), MAX_PARTS, "messages")
    texts = [text_of(turn.content) for turn in turns]
    return Turns([turn.role for turn in turns], texts, sum([size(turn.tool_calls) for turn in turns]))


def read_odd_turns(messages: list[msgspec.Raw]) -> Turns:
    """Read messages of which at least one has an unexpected shape."""
    turns = [odd_turn(item) for item in messages]
    return Turns([role for role, _, _ in turns], [text for _, text, _ in turns], sum([other for _, _, other in turns]))


def _request(body: bytes, common: _CommonFields, odd: RawFields, prompts: int = 1) -> GenerationRequest:
    """Return a request with the fields that both routes have; its prompt is still empty."""
    options = common.stream_options
    return GenerationRequest(
        body=body,
        model=common.model if isinstance(common.model, str) else "",
        stream=bool(common.stream),
        # Options that the gateway does not understand stay as they are: nothing is added, and nothing is hidden.
        includes_usage=bool(options and options.include_usage) or "stream_options" in odd,
        user=common.user or common.safety_identifier or None,
        max_tokens=common.max_tokens,
        limits_answer=common.max_tokens is not None or any(field in odd for field in LIMIT_FIELDS),
        sequences=max(1, min(MAX_SEQUENCES, prompts * max(1, common.n or 1))),
        temperature=number(common.temperature),
        stop_count=len(common.stop) if isinstance(common.stop, list) else int(common.stop is not None),
        schema_bytes=size(common.response_format),
        reasoning_effort=common.reasoning_effort if isinstance(common.reasoning_effort, str) else None,
    )


# Prompt prefixes: an engine that computed the same prefix recently may still have it in its cache.
#
# The next turn of a conversation starts with the whole prompt of this turn, followed by the answer. So the prefixes are
# the whole prompt and the parts before each of the last assistant messages. Two more are the system prompt, which the
# requests of one application share, and everything but the last message, which requests about one document share.

MAX_TURNS = 4
"""Number of assistant messages, from the last one, before which a prefix ends."""

MAX_SEARCHED_MESSAGES = 32
"""Number of messages, from either end, that are searched for assistant messages and for the system prompt."""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""A larger body has no prefixes: it holds images, or a prompt that no engine accepts."""

_SYSTEM_ROLES = ("system", "developer")


def prompt_prefixes(
    body: bytes, roles: Sequence[str], messages: Sequence[msgspec.Raw], tools: msgspec.Raw
) -> tuple[tuple[int, float], ...]:
    """Return (key, share) of the prefixes that other prompts may share, the longest first: the whole prompt.

    Within one process, equal prefixes have equal keys. The share is the part of the prompt's bytes, from 0 to 1.

    Args:
        body: the whole body; only its size is used.
        roles: the role of each message.
        messages: the JSON of each message; messages are equal if their bytes are equal.
        tools: the tools' JSON; chat templates put tools before all messages.

    >>> def keys(*messages: bytes) -> list[int]:
    ...     raws = [msgspec.Raw(message) for message in messages]
    ...     prefixes = prompt_prefixes(b"", ["system", "user", "assistant", "user"][: len(raws)], raws, msgspec.Raw())
    ...     return [key for key, _ in prefixes]
    >>> keys(b"s", b"a")[0] in keys(b"s", b"a", b"b", b"c")
    True
    """
    if len(body) > MAX_BODY_BYTES:
        return ()
    tools_json = bytes(tools)
    key, end = hash(tools_json), len(tools_json)
    keys, ends = [key], [end]
    for message in map(bytes, messages):
        key, end = hash((key, message)), end + len(message)
        keys.append(key)
        ends.append(end)
    return tuple([(keys[n], ends[n] / end) for n in sorted(_message_counts(roles), reverse=True)])


def _message_counts(roles: Sequence[str]) -> set[int]:
    """Return the number of messages in each prefix."""
    count = len(roles)
    counts = {count, max(1, count - 1)} if count else set()
    turns = 0
    for at in range(count - 1, max(0, count - MAX_SEARCHED_MESSAGES), -1):
        if roles[at] == "assistant":
            counts.add(at)
            turns += 1
            if turns == MAX_TURNS:
                break
    system = 0
    while system < min(count, MAX_SEARCHED_MESSAGES) and roles[system] in _SYSTEM_ROLES:
        system += 1
    if system:
        counts.add(system)
    return counts
