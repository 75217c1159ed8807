"""The model name in a request that is not a generation: a field of a JSON body, or of a multipart form."""

from collections.abc import Mapping

import msgspec
from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from gateway.errors import InvalidRequest
from gateway.protocol.generation_request import edited, raw_fields, read_routing

_MAX_NAME_BYTES = 1024


def read_model(body: bytes, content_type: str) -> str | None:
    """Return the model that the body names; None if it names none.

    Raises:
        InvalidRequest: the body does not have the content type.

    >>> read_model(b'{"model": "m", "input": "x"}', "application/json")
    'm'
    """
    boundary = _boundary(content_type)
    if boundary is None:
        return read_routing(body, "")[0]
    name = b"".join([body[start:end] for start, end in _model_spans(body, boundary)])
    return name[:_MAX_NAME_BYTES].decode(errors="replace") or None


def with_model(body: bytes, content_type: str, model: str) -> bytes:
    """Return the body with another model; every other value stays byte for byte.

    Args:
        body: a body that `read_model` has read.
        content_type: of the body.
        model: the new model.
    """
    boundary = _boundary(content_type)
    if boundary is None:
        return with_edits(body, {"model": msgspec.json.encode(model)})
    parts, end = [], 0
    for start, next_end in _model_spans(body, boundary):
        parts += [body[end:start], model.encode()]
        end = next_end
    return b"".join([*parts, body[end:]])


def without_privileges(body: bytes, content_type: str, request_id: str) -> bytes:
    """Return a JSON body without the fields of vLLM that a client must not choose: `priority`, and its own request id.

    >>> without_privileges(b'{"model":"m","priority":-5}', "application/json", "r")
    b'{"model":"m"}'
    """
    if _boundary(content_type) is not None:
        return body
    _, edits, body = read_routing(body, request_id)
    edits.pop("model", None)
    return with_edits(body, edits) if edits else body


def with_edits(body: bytes, edits: Mapping[str, bytes | None]) -> bytes:
    """Return a JSON object with other fields; None removes a field."""
    return msgspec.json.encode(edited(raw_fields(body), edits))


def _boundary(content_type: str) -> str | None:
    """Return the boundary of a multipart form; None for another content type."""
    kind, options = parse_options_header(content_type)
    return options.get("boundary", "") if kind == "multipart/form-data" else None


def _model_spans(body: bytes, boundary: str) -> list[tuple[int, int]]:
    """Return where the data of the fields named `model` starts and ends in the form.

    The parser reports each field and its data, but no offsets. They follow from the lengths of the data: a field's data
    starts after the first empty line behind its boundary, and the next boundary follows the data.
    """
    spans: list[tuple[int, int]] = []
    start = end = 0
    is_model = False
    try:
        with PushMultipartParser(boundary, max_segment_size=len(body)) as parser:
            for event in parser.parse(body):
                if isinstance(event, MultipartSegment):
                    boundary_at = body.index(b"--" + boundary.encode(), end)
                    start = end = body.index(b"\r\n\r\n", boundary_at) + 4
                    is_model = event.name == "model"
                elif event:
                    end += len(event)
                elif is_model:
                    spans.append((start, end))
    except (MultipartError, ValueError) as error:
        raise InvalidRequest(f"The body is not a valid multipart form: {error}") from error
    return spans
