"""Where a chat's prompt may begin like another's: an engine that computed that beginning lately has it cached.

The next turn of a conversation begins with all that this one sends, followed by the answer to it. So what is worth
remembering of a chat is its whole prompt, and what is worth looking for are the points before each of the assistant's
messages. The system prompt alone is shared by whole applications, and all but the last message by who asks several
things of one document or after the same examples.
"""

from typing import NamedTuple

import msgspec

MAX_TURNS = 4
"""Of the assistant's messages, the last that a beginning is cut before."""

MAX_LOOK_BACK = 32
"""Messages from the end that are looked at for them."""

MAX_BODY_BYTES = 4 * 1024 * 1024
"""A larger body is not looked at: it is images, or a prompt that no engine takes."""

_ASSISTANT = b'"assistant"'
_SYSTEM = (b'"system"', b'"developer"')
"""Roles as they stand in a message. Quotes within a text are escaped, so none of it is taken for one; another string of
the message may be the same word, and that is a cut too many."""

_ABSENT = msgspec.Raw()


class Beginning(NamedTuple):
    """The beginning of a prompt: equal ones have equal keys, within one process. `share` of its bytes are in it."""

    key: int
    share: float


class _Chat(msgspec.Struct):
    messages: list[msgspec.Raw]
    model: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    """Where Anthropic has it."""
    tools: msgspec.Raw = _ABSENT


_chat_decoder = msgspec.json.Decoder(_Chat)


def chat_beginnings(body: bytes) -> tuple[Beginning, ...]:
    """Return the beginnings of a chat's prompt that others may share, the longest first, the whole prompt among them.

    Args:
        body: of `/v1/chat/completions` or `/v1/messages`, read well before. Messages are equal if their bytes are.

    >>> turn = b'{"messages": [{"role":"system","content":"s"}, {"role":"user","content":"a"}%s]}'
    >>> first = chat_beginnings(turn % b"")
    >>> second = chat_beginnings(turn % b', {"role":"assistant","content":"b"}, {"role":"user","content":"c"}')
    >>> first[0] in first, first[0].key in {beginning.key for beginning in second}
    (True, True)
    """
    if len(body) > MAX_BODY_BYTES:
        return ()
    chat = _chat_decoder.decode(body)
    messages, tools = [bytes(message) for message in chat.messages], bytes(chat.tools)
    if bytes(chat.system):
        messages.insert(0, b'{"role":"system","content":%b}' % bytes(chat.system))
    key, end = hash((bytes(chat.model), tools)), len(tools)  # templates put the tools ahead of all messages
    keys, ends = [key], [end]
    for message in messages:
        key, end = hash((key, message)), end + len(message)
        keys.append(key)
        ends.append(end)
    return tuple([Beginning(keys[cut], ends[cut] / end) for cut in sorted(_cuts(messages), reverse=True)])


def _cuts(messages: list[bytes]) -> set[int]:
    """How many messages the beginnings have."""
    count = len(messages)
    cuts = {count, max(1, count - 1)} if count else set()
    turns = 0
    for at in range(count - 1, max(0, count - MAX_LOOK_BACK), -1):
        if _ASSISTANT in messages[at]:
            cuts.add(at)
            turns += 1
            if turns == MAX_TURNS:
                break
    system = 0
    while system < min(count, MAX_LOOK_BACK) and any(role in messages[system] for role in _SYSTEM):
        system += 1
    if system:
        cuts.add(system)
    return cuts
