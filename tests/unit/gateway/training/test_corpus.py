import json
import random
import tracemalloc
from pathlib import Path

import pytest

from gateway.errors import RowError
from gateway.training import corpus
from gateway.training.corpus import survey


@pytest.fixture
def a_file(tmp_path: Path):
    def write(rows, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"output_tokens": 1} | row) + "\n" for row in rows))
        return path

    return write


def test_rows_without_times_keep_their_order(a_file):
    found = survey([a_file([{"user": "a"}, {"user": "b"}])])
    assert (found.rows, found.in_order, found.first_t) == (2, True, None)
    assert [row.user for row in found.read()] == ["a", "b"]


def test_files_without_times_are_interleaved(a_file):
    files = [
        a_file([{"user": f"a{n}"} for n in range(6)], "1.jsonl"),
        a_file([{"user": "b0"}, {"user": "b1"}], "2.jsonl"),
    ]
    assert [row.user for row in survey(files).read()] == ["a0", "a1", "b0", "a2", "a3", "a4", "b1", "a5"]


def test_times_order_the_rows_of_all_files(a_file):
    files = [a_file([{"t": 3}, {"t": 1}], "1.jsonl"), a_file([{"t": 2}], "2.jsonl")]
    found = survey(files)
    assert (found.in_order, found.first_t, found.last_t) == (False, 1, 3)
    assert [row.t for row in found.read()] == [1, 2, 3]


def test_a_row_without_time_stays_after_the_row_before_it(a_file):
    rows = [{"t": 5, "user": "b"}, {"user": "c"}, {"t": 1, "user": "a"}]
    assert [row.user for row in survey([a_file(rows)]).read()] == ["a", "b", "c"]


def test_sorting_on_disk_is_stable_and_loses_nothing(a_file, monkeypatch):
    monkeypatch.setattr(corpus, "RUN_BYTES", 5000)
    draw = random.Random(1)
    rows = [{"t": draw.randrange(50), "output_tokens": number} for number in range(3000)]
    read = [(row.t, row.output_tokens) for row in survey([a_file(rows)]).read()]
    assert read == sorted((row["t"], row["output_tokens"]) for row in rows)


def test_a_bad_line_at_the_end_is_found_before_anything_is_read(a_file):
    path = a_file([{}] * 100)
    with path.open("a") as file:
        file.write('{"output_tokens": -1}\n')
    with pytest.raises(RowError, match=r"rows\.jsonl:101: output_tokens"):
        survey([path])


def test_only_regular_files_can_be_read_twice():
    with pytest.raises(RowError, match="not a regular file"):
        survey([Path("/dev/stdin")])


@pytest.mark.parametrize(
    ("times", "expected"),
    [([1.7e9, 1.6e9], True), ([0.0, 1.7e9], False), ([1.7e9, 1.9e9], False), ([5.0], False)],
)
def test_unix_times_are_recognized_by_their_size(a_file, times, expected):
    assert survey([a_file([{"t": t} for t in times])]).is_unix_time(1.8e9) is expected


def test_memory_does_not_grow_with_the_file(a_file, monkeypatch):
    monkeypatch.setattr(corpus, "RUN_BYTES", 2**19)
    path = a_file({"t": -number, "prompt": "x" * 500} for number in range(20_000))
    tracemalloc.start()
    try:
        assert sum(1 for _ in survey([path]).read()) == 20_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < path.stat().st_size / 4
