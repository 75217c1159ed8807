"""The one rule for texts of clients and engines that are stored: they are short, and Postgres accepts every character.

History and predictor use the same function, so that they know a user or a model under the same name.
"""

import re
from hashlib import sha256

MAX_STORED_CHARS = 256
"""Longest stored name, in characters: application, user, model, request id, error code. As UTF-8 it is at most 1 KiB,
so it fits into an entry of a Postgres index (2704 bytes)."""

MAX_STORED_PROMPT_CHARS = 32_768
"""Longest stored prompt, in characters."""

_HASH_DIGITS = 32
_REPLACEMENT = "\ufffd"
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
"""Characters that Postgres does not store: NUL and halves of surrogate pairs."""


def stored_text(text: str, max_chars: int = MAX_STORED_CHARS) -> str:
    r"""Return the text as it is stored: itself, or else its start, `~` and a hash of the whole text.

    The text changes if it is longer than `max_chars`, or if it contains characters that Postgres does not store; they
    become U+FFFD. The hash keeps different texts different. A second call changes nothing.

    >>> stored_text("ann")
    'ann'
    >>> stored_text("ann\0")
    'ann�~fed03448d4eac955737eeb1ba0cda332'
    >>> len(stored_text("x" * 6000))
    256
    """
    if len(text) <= max_chars and (text.isprintable() or not _UNSTORABLE.search(text)):
        return text
    digest = sha256(text.encode(errors="surrogatepass")).hexdigest()[:_HASH_DIGITS]
    start = _UNSTORABLE.sub(_REPLACEMENT, text[: max_chars - 1 - _HASH_DIGITS])
    return f"{start}~{digest}"
