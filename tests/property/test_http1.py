"""A response is parsed to the same value however it is cut into reads."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NotHttpError
from gateway.upstream.http1 import Http1Response

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
bodies = st.lists(st.binary(min_size=1, max_size=50), max_size=5)


def chunked(parts):
    head = b"HTTP/1.1 201 Made\r\nX-One: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def of_a_length(parts):
    return b"HTTP/1.1 201 Made\r\nX-One: 1\r\nContent-Length: %d\r\n\r\n" % sum(map(len, parts)) + b"".join(parts)


def pieces_of(data, cuts):
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


@given(bodies, st.sampled_from([chunked, of_a_length]), st.booleans(), st.lists(st.integers(min_value=0), max_size=9))
def test_cuts_between_reads_change_nothing(parts, framed, continues, cuts):
    answer, taken = Http1Response(), []
    for piece in pieces_of((CONTINUE if continues else b"") + framed(parts), cuts):
        assert not answer.complete
        answer.feed(piece)
        taken.append(answer.take())
    assert (answer.status, answer.complete, answer.keep_alive) == (201, True, True)
    assert answer.headers[0] == (b"X-One", b"1")
    assert b"".join(taken) == b"".join(parts)


@given(bodies, st.sampled_from([chunked, of_a_length]), st.integers(min_value=1))
def test_truncated_response_is_never_complete(parts, framed, cut):
    data = framed(parts)
    answer = Http1Response()
    answer.feed(data[: cut % len(data)])
    assert not answer.close()


@given(bodies, st.lists(st.integers(min_value=0), max_size=9))
def test_response_without_a_length_ends_with_the_connection(parts, cuts):
    answer = Http1Response()
    for piece in pieces_of(b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(parts), cuts):
        answer.feed(piece)
    assert not answer.complete
    assert answer.close()
    assert not answer.keep_alive
    assert answer.take() == b"".join(parts)


more_than_line_ends = st.binary(min_size=1).filter(lambda more: more.strip(b"\r\n"))


@given(bodies, st.sampled_from([chunked, of_a_length]), more_than_line_ends, st.booleans())
def test_bytes_after_the_response_are_not_part_of_it_and_close_the_connection(parts, framed, more, at_once):
    answer = Http1Response()
    data = framed(parts)
    try:
        for piece in [data + more] if at_once else [data, more]:
            answer.feed(piece)
    except NotHttpError:
        return
    assert answer.take() == b"".join(parts)
    assert not answer.keep_alive


@given(st.binary(max_size=200))
def test_noise_is_an_error_or_an_incomplete_response(noise):
    answer = Http1Response()
    try:
        answer.feed(noise)
    except NotHttpError:
        return
    assert not answer.complete or noise.lstrip(b"\r\n").startswith(b"HTTP/")


def test_head_without_an_end_is_an_error():
    answer = Http1Response()
    answer.feed(b"HTTP/1.1 200 OK\r\nx: ")
    for _ in range(255):
        answer.feed(b"y" * 1024)
    with pytest.raises(NotHttpError, match="head"):
        answer.feed(b"y" * 1024)
