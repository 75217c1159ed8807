import gzip
import tracemalloc
import zlib
from typing import Any

import pytest
import zstandard

from gateway.errors import BodyTooLarge, InvalidRequest, UnsupportedEncoding
from gateway.protocol.encodings import MAX_PARTS, unpack

TEXT = b'{"model": "m", "messages": []}' * 100
ENCODE: dict[str, Any] = {"gzip": gzip.compress, "zstd": zstandard.compress}

both = pytest.mark.parametrize("encoding", ["gzip", "zstd"])


@both
@pytest.mark.parametrize("name", [str.lower, str.upper, " {} ".format], ids=["lower", "upper", "padded"])
def test_a_body_is_decompressed(encoding, name):
    assert unpack(ENCODE[encoding](TEXT), name(encoding), len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_an_uncompressed_body_is_not_changed(encoding):
    assert unpack(TEXT, encoding, 1) == TEXT


@both
def test_parts_are_put_together(encoding):
    packed = ENCODE[encoding](TEXT[:50]) + ENCODE[encoding](b"") + ENCODE[encoding](TEXT[50:])
    assert unpack(packed, encoding, len(TEXT)) == TEXT


@both
def test_a_frame_without_its_size_is_read(encoding):
    packer = zstandard.ZstdCompressor().compressobj() if encoding == "zstd" else zlib.compressobj(wbits=31)
    assert unpack(packer.compress(TEXT) + packer.flush(), encoding, len(TEXT)) == TEXT


@both
def test_one_byte_over_the_limit_is_rejected(encoding):
    with pytest.raises(BodyTooLarge):
        unpack(ENCODE[encoding](TEXT), encoding, len(TEXT) - 1)


@both
def test_a_decompression_bomb_is_rejected_early(encoding):
    limit = 1024 * 1024
    bomb = ENCODE[encoding](bytes(256 * limit))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            unpack(bomb, encoding, limit)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(bomb) < limit
    assert peak < 32 * limit


@both
def test_an_incomplete_body_is_rejected(encoding):
    for cut in (1, 5, 12):
        with pytest.raises(InvalidRequest, match="incomplete"):
            unpack(ENCODE[encoding](TEXT)[:-cut], encoding, len(TEXT))


@both
@pytest.mark.parametrize("body", [b"", TEXT])
def test_a_body_with_another_encoding_is_rejected(encoding, body):
    with pytest.raises(InvalidRequest):
        unpack(body, encoding, len(TEXT))


@both
def test_a_body_of_very_many_parts_is_refused(encoding):
    with pytest.raises(InvalidRequest, match="parts"):
        unpack(ENCODE[encoding](b"") * (MAX_PARTS + 1), encoding, len(TEXT))


def test_a_window_that_is_too_large_is_rejected():
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packed.compress(TEXT) + packed.flush()
    with pytest.raises(InvalidRequest):
        unpack(body, "zstd", len(TEXT))


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "x" * 1000])
def test_an_error_names_the_unknown_encoding(encoding):
    with pytest.raises(UnsupportedEncoding, match="gzip, zstd") as refusal:
        unpack(TEXT, encoding, len(TEXT))
    assert refusal.value.headers["accept-encoding"] == "gzip, zstd"
    assert len(refusal.value.message) < 200
