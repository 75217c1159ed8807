import gzip
from pathlib import Path

import pytest

from gateway.errors import RowError
from gateway.training import rows
from gateway.training.rows import read_rows

GOOD = b'{"output_tokens": 7}\n'


@pytest.fixture
def a_file(tmp_path: Path):
    def write(content: bytes, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def test_missing_field_is_unknown(a_file):
    [row] = read_rows(a_file(GOOD))
    assert row.output_tokens == 7
    assert (row.app, row.user, row.model, row.t, row.text, row.input_tokens) == (None,) * 6


def test_unknown_fields_are_ignored(a_file):
    [row] = read_rows(
        a_file(b'{"app": "GC", "user_input": "Hi", "output": "Hello", "output_tokens": 2, "group": "g1"}')
    )
    assert (row.app, row.text, row.output_tokens, row.group) == ("GC", "Hi", 2, "g1")


def test_compressed_rows_are_read(a_file):
    assert len(list(read_rows(a_file(gzip.compress(GOOD * 5), "rows.jsonl.gz")))) == 5


def test_a_byte_order_mark_and_blank_lines_are_ignored(a_file):
    assert len(list(read_rows(a_file(b"\xef\xbb\xbf" + GOOD + b"\n  \n" + GOOD)))) == 2


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{}", "output_tokens: missing"),
        (b'{"output_tokens": null}', "output_tokens: Expected int, got null"),
        (b'{"output_tokens": -1}', "output_tokens: Expected int >= 0"),
        (b'{"output_tokens": "12"}', "output_tokens: Expected int, got str"),
        (b'{"output_tokens": 1.5}', "output_tokens: Expected int, got float"),
        (b'{"output_tokens": 99999999999999999999}', "output_tokens: Expected int"),
        (b'{"output_tokens": 1, "input_tokens": -3}', "input_tokens: Expected int >= 0"),
        (b'{"output_tokens": 1, "user": 5}', "user: Expected str | null, got int"),
        (b'{"output_tokens": 1, "user": "a\\u0000"}', "user: a NUL character"),
        (b'{"output_tokens": 1, "model": "' + b"m" * 513 + b'"}', "model: longer than 512 characters"),
        (b'{"output_tokens": 1, "t": "noon"}', "t: Expected float | null, got str"),
        (b'{"output_tokens": 1, "t": 1e999}', "t: Number out of range"),
        (b'{"output_tokens": 1, "messages": [{"role": 1}]}', "messages[0].role: Expected str, got int"),
        (b"[1]", "Expected object, got array"),
        (b'{"output_tokens": 1', "Input data was truncated"),
        (b"\xff\xfe", "JSON is malformed"),
        (b'{"output_tokens": 1, "user": "\xff"}', "can't decode byte 0xff"),
        (b'{"output_tokens": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion"),
    ],
)
def test_a_bad_line_is_named_with_its_field(a_file, line, complaint):
    path = a_file(GOOD * 2 + line + b"\n" + GOOD)
    with pytest.raises(RowError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}:3: ")
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_an_error(a_file, content):
    with pytest.raises(RowError, match="no rows in it"):
        list(read_rows(a_file(content)))


def test_a_line_without_end_is_not_read_into_memory(a_file, monkeypatch):
    monkeypatch.setattr(rows, "MAX_LINE_BYTES", 2**20)
    with pytest.raises(RowError, match=r"rows\.jsonl:2: a line of more than 1 MiB"):
        list(read_rows(a_file(GOOD + b"x" * 2**21)))


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(GOOD * 9)[:-12], gzip.compress(GOOD * 9)[:14] + b"xxxx"])
def test_a_broken_archive_is_an_error(a_file, content):
    with pytest.raises(RowError, match=r"rows\.jsonl\.gz"):
        list(read_rows(a_file(content, "rows.jsonl.gz")))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RowError, match="No such file"):
        list(read_rows(tmp_path / "nowhere.jsonl"))


def test_a_trace_is_read_by_its_header(a_file):
    trace = b"arrival_s,input_tokens,output_tokens,app,user,blocks\n0.5,10,20,code,7,3\n1.5,11,,code,,\n"
    path = a_file(gzip.compress(trace), "trace.csv.gz")
    stream = read_rows(path)
    row = next(stream)
    assert (row.t, row.input_tokens, row.output_tokens, row.app, row.user) == (0.5, 10, 20, "code", "7")
    with pytest.raises(RowError, match=r"trace\.csv\.gz:3: output_tokens: missing"):
        next(stream)


@pytest.mark.parametrize(
    ("trace", "complaint"),
    [
        (b"", r":1: output_tokens: no such column"),
        (b"arrival_s,app\n1,a\n", r":1: output_tokens: no such column"),
        (b"output_tokens\n", "no rows in it"),
        (b"output_tokens,app\n5,a\n5\n", r":3: 1 values under a header of 2 columns"),
        (b"output_tokens\n-5\n", r":2: output_tokens: Expected int >= 0"),
        (b"output_tokens,arrival_s\n5,nan\n", r":2: t: a finite number expected"),
        (b"output_tokens\n\xff\n", r":2: .*decode byte 0xff"),
    ],
)
def test_a_bad_trace_is_named_with_its_line(a_file, trace, complaint):
    with pytest.raises(RowError, match=complaint):
        list(read_rows(a_file(trace, "trace.csv")))


def test_progress_adds_up_to_the_file(a_file):
    path, reported = a_file(GOOD * 5000), []
    list(read_rows(path, reported.append))
    assert sum(reported) == path.stat().st_size
    assert len(reported) > 1
