"""Decompression of request bodies. The output is bounded, because a few bytes can expand to gigabytes."""

import zlib
from collections.abc import Callable
from typing import Protocol

import zstandard

from gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedEncoding

MAX_WINDOW_BYTES = 8 * 1024 * 1024
"""Largest window of a zstd frame, as RFC 9659 limits it for HTTP: the decoder allocates the window first."""

MAX_PARTS = 64
"""Largest number of gzip members or zstd frames in one body."""

_STEP_BYTES = 256
"""Bytes per call of the zstd decoder; each 4 input bytes expand to at most 128 KiB."""


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def unpack(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress a body.

    Args:
        body: the compressed bytes.
        encoding: the value of `Content-Encoding`.
        max_bytes: largest size of the result.

    Raises:
        UnsupportedEncoding: neither `gzip` nor `zstd`.
        InvalidRequest: the body does not have that encoding, or it is incomplete.
        BodyTooLarge: the result is larger than `max_bytes`.

    >>> import gzip
    >>> unpack(gzip.compress(b"{}"), "gzip", 10)
    b'{}'
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    parts = _UNPACKED.get(name)
    if parts is None:
        raise UnsupportedEncoding(f"The body's encoding {encoding[:50]!r} is not one of: gzip, zstd")
    try:
        return parts(body, max_bytes)
    except (zlib.error, zstandard.ZstdError) as error:
        raise InvalidRequest(f"The body is not valid {name}", param="content-encoding") from error


def _gunzip(body: bytes, max_bytes: int) -> bytes:
    """Decompress all gzip members."""
    whole = bytearray()
    for _ in range(MAX_PARTS):
        unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        whole += unpacker.decompress(body, max_bytes + 1 - len(whole))
        _check(len(whole), max_bytes)
        body = _rest(unpacker)
        if not body:
            return bytes(whole)
    raise _too_many_parts()


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    """Decompress all zstd frames."""
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
    raise _too_many_parts()


_UNPACKED: dict[str, Callable[[bytes, int], bytes]] = {"gzip": _gunzip, "x-gzip": _gunzip, "zstd": _unzstd}


def _check(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise BodyTooLarge(f"The decompressed body is larger than {max_bytes} bytes")


def _too_many_parts() -> InvalidRequest:
    return InvalidRequest(f"The compressed body has more than {MAX_PARTS} parts", param="content-encoding")


def _rest(unpacker: _Unpacker) -> bytes:
    if not unpacker.eof:
        raise InvalidRequest("The compressed body is incomplete", param="content-encoding")
    return unpacker.unused_data
