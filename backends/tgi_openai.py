"""Changes to requests for OpenAI's routes of TGI, which differ from OpenAI's in a few fields. Pure."""

from dataclasses import dataclass

import msgspec

MAX_TOKENS = "max_tokens"
NEWER_MAX_TOKENS = "max_completion_tokens"

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Adapted:
    """A request with its fields changed for TGI. The answer needs no change."""

    path: str
    body: bytes

    def whole(self, body: bytes) -> bytes:
        """Return the answer unchanged."""
        return body

    def feed(self, chunk: bytes) -> bytes:
        """Return the part of the stream unchanged."""
        return chunk


def adapt(path: str, body: bytes) -> Adapted | None:
    """Change the fields that TGI would reject or ignore. Return None if there are none.

    TGI accepts stop sequences and prompts only as lists, ignores `max_completion_tokens`, and rejects a `top_p` of 1.

    >>> adapt("/v1/chat/completions", b'{"stop": "x", "max_completion_tokens": 5, "top_p": 1}').body
    b'{"stop":["x"],"max_tokens":5}'
    """
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the engine rejects a body that is not JSON
    adapted: dict[str, msgspec.Raw] = {}
    for name, raw in fields.items():
        if name in ("stop", "prompt") and _first(raw) == b'"':
            adapted[name] = msgspec.Raw(b"[" + bytes(raw) + b"]")
        elif name == NEWER_MAX_TOKENS and _first(raw) != b"n":
            adapted[MAX_TOKENS] = raw
        elif name != "top_p" or not _is_all(raw):
            adapted.setdefault(name, raw)
    return None if adapted == fields else Adapted(path, msgspec.json.encode(adapted))


def _first(raw: msgspec.Raw) -> bytes:
    return bytes(raw).lstrip()[:1]


def _is_all(raw: msgspec.Raw) -> bool:
    try:
        return float(bytes(raw)) >= 1
    except ValueError:
        return False
