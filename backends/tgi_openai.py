"""Requests to OpenAI's routes as TGI takes them: close to OpenAI's, with a few fields that it words otherwise. Pure."""

from dataclasses import dataclass

import msgspec

MAX_TOKENS = "max_tokens"
NEWER_MAX_TOKENS = "max_completion_tokens"

_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Adapted:
    """A request with its fields in TGI's words; the answer needs none."""

    path: str
    body: bytes

    def whole(self, body: bytes) -> bytes:
        """Return the answer as it is."""
        return body

    def feed(self, chunk: bytes) -> bytes:
        """Return a part of the stream as it is."""
        return chunk


def adapt(path: str, body: bytes) -> Adapted | None:
    """Put what TGI would refuse or overlook into its words; None where there is nothing of the kind.

    It takes stop sequences and prompts as lists alone, does not know `max_completion_tokens`, and refuses a `top_p` of
    1, which means none.

    >>> adapt("/v1/chat/completions", b'{"stop": "x", "max_completion_tokens": 5, "top_p": 1}').body
    b'{"stop":["x"],"max_tokens":5}'
    """
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # what is wrong with it is the engine's to say
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
