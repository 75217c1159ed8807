"""Bodies that came compressed. What is unpacked is bounded: a few bytes may stand for gigabytes."""

import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard

from gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedEncoding

MAX_WINDOW_BYTES = 8 * 1024 * 1024
"""Of a zstd frame, as RFC 9659 bounds it for HTTP: its memory is taken before a byte is unpacked."""

MAX_PARTS = 64
"""gzip members or zstd frames that one body may be made of."""

_STEP_BYTES = 256
"""zstd is fed so many bytes at a time: at most 128 KiB come out of each 4 of them."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Unpack a body.

    Args:
        body: as it came.
        encoding: the value of `Content-Encoding`.
        max_bytes: of what is unpacked.

    Raises:
        UnsupportedEncoding: neither `gzip` nor `zstd`.
        InvalidRequest: the body is not of that encoding, or its end is missing.
        BodyTooLarge: it unpacks to more than `max_bytes`.

    >>> import gzip
    >>> unpack(gzip.compress(b"{}"), "gzip", 10)
    b'{}'
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    parts = _UNPACKED.get(name)
    if parts is None:
        raise UnsupportedEncoding(f"The body's encoding {encoding[:50]!r} is none of: gzip, zstd")
    try:
        return parts(body, max_bytes)
    except (zlib.error, zstandard.ZstdError) as error:
        raise InvalidRequest(f"The body is not valid {name}", param="content-encoding") from error


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    """Unpack one gzip member after the other."""
    whole = bytearray()
    for _ in range(MAX_PARTS):
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        whole += unpacker.decompress(body, max_bytes + 1 - len(whole))
        _check(len(whole), max_bytes)
        body = _rest(unpacker)
        if not body:
            return bytes(whole)
    raise _made_of_too_many()


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    """Unpack one zstd frame after the other."""
    whole = bytearray()
    for _ in range(MAX_PARTS):
        unpacker = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).decompressobj()
        at = 0
        while at < len(body) and not unpacker.eof:
            whole += unpacker.decompress(body[at : at + _STEP_BYTES])
            _check(len(whole), max_bytes)
            at += _STEP_BYTES
        body = _rest(unpacker) + body[at:]
        if not body:
            return bytes(whole)
    raise _made_of_too_many()


_UNPACKED: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gunzip, "x-gzip": _gunzip, "zstd": _unzstd}


def _check(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise BodyTooLarge(f"The body is over {max_bytes} bytes when it is unpacked")


def _made_of_too_many() -> InvalidRequest:
    return InvalidRequest(f"The compressed body is made of over {MAX_PARTS} parts", param="content-encoding")


def _rest(unpacker: _Unpacker) -> bytes:
    if not unpacker.eof:
        raise InvalidRequest("The compressed body is cut off", param="content-encoding")
    return unpacker.unused_data
