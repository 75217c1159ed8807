"""Prefixes of a chat's prompt: an engine that computed the same prefix recently may still have it in its cache.

The next turn of a conversation starts with the whole prompt of this turn, followed by the answer. So the prefixes are
the whole prompt and the parts before each of the last assistant messages. Two more are the system prompt, which the
requests of one application share, and everything but the last message, which requests about one document share.
"""

from collections.abc import Sequence

import msgspec

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
