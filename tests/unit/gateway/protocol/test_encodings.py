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
def test_a_body_comes_out_as_it_went_in(encoding, name):
    assert unpack(ENCODE[encoding](TEXT), name(encoding), len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_a_body_that_is_not_packed_stays_as_it_is(encoding):
    assert unpack(TEXT, encoding, 1) == TEXT


@both
def test_parts_are_put_together(encoding):
    packed = ENCODE[encoding](TEXT[:50]) + ENCODE[encoding](b"") + ENCODE[encoding](TEXT[50:])
    assert unpack(packed, encoding, len(TEXT)) == TEXT


@both
def test_a_frame_that_does_not_say_its_size_is_read_too(encoding):
    packer = zstandard.ZstdCompressor().compressobj() if encoding == "zstd" else zlib.compressobj(wbits=31)
    assert unpack(packer.compress(TEXT) + packer.flush(), encoding, len(TEXT)) == TEXT


@both
def test_one_byte_too_many_is_too_many(encoding):
    with pytest.raises(BodyTooLarge):
        unpack(ENCODE[encoding](TEXT), encoding, len(TEXT) - 1)


@both
def test_a_bomb_is_refused_before_it_fills_the_memory(encoding):
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
def test_what_is_cut_off_is_refused(encoding):
    for cut in (1, 5, 12):
        with pytest.raises(InvalidRequest, match="incomplete"):
            unpack(ENCODE[encoding](TEXT)[:-cut], encoding, len(TEXT))


@both
@pytest.mark.parametrize("body", [b"", TEXT])
def test_what_is_not_packed_so_is_refused(encoding, body):
    with pytest.raises(InvalidRequest):
        unpack(body, encoding, len(TEXT))


@both
def test_a_body_of_very_many_parts_is_refused(encoding):
    with pytest.raises(InvalidRequest, match="parts"):
        unpack(ENCODE[encoding](b"") * (MAX_PARTS + 1), encoding, len(TEXT))


def test_a_window_that_would_take_all_memory_is_refused():
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = packed.compress(TEXT) + packed.flush()
    with pytest.raises(InvalidRequest):
        unpack(body, "zstd", len(TEXT))


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, zstd", "x" * 1000])
def test_an_encoding_that_is_not_known_is_named(encoding):
    with pytest.raises(UnsupportedEncoding, match="gzip, zstd") as refusal:
        unpack(TEXT, encoding, len(TEXT))
    assert refusal.value.headers["accept-encoding"] == "gzip, zstd"
    assert len(refusal.value.message) < 200
