"""What the gateway sets in a request that goes to an engine. Every other byte stays as the client wrote it."""

from collections.abc import Mapping

import msgspec

from gateway.protocol.json_fields import decode

_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def ask_for_usage(body: bytes) -> bytes:
    """Return the body of a streaming request with `stream_options.include_usage` set.

    Args:
        body: a JSON object that was read well before.

    >>> ask_for_usage(b'{"model": "m", "x": 1.50}')
    b'{"model": "m", "x": 1.50,"stream_options":{"include_usage":true}}'
    """
    if b'"stream_options"' not in body:
        return _append(body, b'"stream_options":{"include_usage":true}')
    fields = decode(_object_decoder, body)
    options = _object_decoder.decode(fields.get("stream_options") or b"{}") if _is_set(fields, "stream_options") else {}
    options["include_usage"] = msgspec.Raw(b"true")
    fields["stream_options"] = msgspec.Raw(msgspec.json.encode(options))
    return msgspec.json.encode(fields)


def with_default(body: bytes, name: str, number: int) -> bytes:
    """Return the body with a field set to a number, unless its client has set it.

    Args:
        body: a JSON object that was read well before.
        name: of the field, in ASCII.
        number: its value.

    >>> with_default(b'{"model": "m", "x": 1.50}', "priority", -3)
    b'{"model": "m", "x": 1.50,"priority":-3}'
    """
    key = b'"%b"' % name.encode("ascii")
    if key in body:
        fields = decode(_object_decoder, body)
        if _is_set(fields, name):
            return body
        if name in fields:
            return with_fields(body, {name: number})
    return _append(body, b"%b:%d" % (key, number))


def with_fields(body: bytes, changes: Mapping[str, object]) -> bytes:
    """Return the body with some fields in others' place or added, every other value byte for byte.

    Args:
        body: a JSON object that was read well before.
        changes: by name, in JSON's types.

    >>> with_fields(b'{"model": "gpt-4o-mini", "x": 1.50}', {"model": "llama"})
    b'{"model":"llama","x":1.50}'
    """
    fields = decode(_object_decoder, body)
    fields |= {name: msgspec.Raw(msgspec.json.encode(value)) for name, value in changes.items()}
    return msgspec.json.encode(fields)


def _append(body: bytes, field: bytes) -> bytes:
    end = body.rindex(b"}")
    comma = b"" if body[:end].rstrip().endswith(b"{") else b","
    return b"%b%b%b%b" % (body[:end], comma, field, body[end:])


def _is_set(fields: dict[str, msgspec.Raw], name: str) -> bool:
    return name in fields and bytes(fields[name]).strip() != b"null"
