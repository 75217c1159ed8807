"""What the readers of all APIs have in common: decoding, and refusals that name the field at fault."""

import re
from typing import Annotated, NoReturn, TypeVar

import msgspec

from gateway.errors import InvalidRequest

T = TypeVar("T")

ABSENT = msgspec.Raw()
"""A field that is not there."""

Tokens = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
"""A bound on an answer's length."""

_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")


def decode(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T:
    """Decode a body.

    Raises:
        InvalidRequest: not JSON, or a field is missing or of the wrong type; `param` names it.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        _reject(error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InvalidRequest("The body is nested too deeply") from error


def decode_or_none(decoder: "msgspec.json.Decoder[T]", body: bytes) -> T | None:
    """Decode what an engine said, or return None where it is not what is looked for."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def utf8_bytes(text: str) -> int:
    """Size of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def number(value: object) -> float | None:
    """Read a number of any size; what no float can hold says nothing."""
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None


def size(raw: msgspec.Raw) -> int:
    """Bytes of a field that is there and not null."""
    return 0 if bytes(raw) == b"null" else len(bytes(raw))


def _reject(error: msgspec.ValidationError) -> NoReturn:
    """Name the field at fault as OpenAI does: `messages[0].role`."""
    text = str(error)
    path = match["path"] if (match := _PATH.search(text)) else ""
    if missing := _MISSING.search(text):
        path = f"{path}.{missing['field']}".lstrip(".")
    where = f"{path}: " if path else ""
    raise InvalidRequest(where + _PATH.sub("", text), param=path or None) from error
