"""The model that a request names which is not a generation: in a JSON body, or in a field of a form."""

import re
from collections.abc import Iterator

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from gateway.errors import InvalidRequest
from gateway.protocol.edits import with_fields
from gateway.protocol.json_fields import decode

_MAX_NAME_BYTES = 1024


class _Named(msgspec.Struct):
    model: str | None = None


_decoder = msgspec.json.Decoder(_Named)


def read_model(body: bytes, content_type: str) -> str | None:
    """Return the model that the body names.

    Raises:
        InvalidRequest: the body is not of its type.

    >>> read_model(b'{"model": "m", "input": "x"}', "application/json")
    'm'
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        return decode(_decoder, body).model
    named = b"".join(_field(body, options.get("boundary", ""), "model"))
    return named[:_MAX_NAME_BYTES].decode(errors="replace") or None


def with_model(body: bytes, content_type: str, model: str) -> bytes:
    """Return the body with another model; every other value is the same byte for byte.

    Args:
        body: as `read_model` read it.
        content_type: its own.
        model: the model's name there.
    """
    kind, options = parse_options_header(content_type)
    if kind != "multipart/form-data":
        return with_fields(body, {"model": model})
    boundary = re.escape(options.get("boundary", "").encode("latin-1"))
    field = re.compile(
        rb'(--%b\r\n(?:[^\r\n]+\r\n)*?[^\r\n]*\bname="?model"?(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n)[^\r\n]*'
        % boundary
    )
    return field.sub(lambda found: found[1] + model.encode(), body, count=1)


def _field(body: bytes, boundary: str, name: str) -> Iterator[bytes]:
    """Yield the data of a form's fields of that name."""
    wanted = False
    try:
        with PushMultipartParser(boundary, max_segment_size=len(body)) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    wanted = event.name == name
                elif wanted and event:
                    yield bytes(event)
    except (MultipartError, ValueError) as error:
        raise InvalidRequest(f"The body is no valid form: {error}") from error
