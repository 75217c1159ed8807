import json

import pytest

from bench.reality.rows import TooFewRowsError, divide, poisson_times, read_files


def write(folder, *rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_that_share_an_input_come_once(tmp_path):
    path = write(
        tmp_path,
        {"app": "mt", "prompt": "a", "output_tokens": 3, "group": "g"},
        {"app": "mt", "prompt": "b", "output_tokens": 4, "group": "g"},
        {"app": "mt", "prompt": "c", "output_tokens": 5, "group": "h"},
        {"app": "gc", "prompt": "c", "output_tokens": 6, "group": "i"},
    )
    assert len(read_files([path], longest=100, seed=0)) == 2


def test_answers_that_cannot_be_measured_are_left_out(tmp_path):
    path = write(
        tmp_path,
        {"app": "mt", "prompt": "too long", "output_tokens": 101},
        {"app": "mt", "prompt": "empty", "output_tokens": 0},
        {"app": "mt", "prompt": "good", "output_tokens": 100},
    )
    assert [row.prompt for row in read_files([path], longest=100, seed=0)] == ["good"]


def test_parts_share_no_row(tmp_path):
    path = write(tmp_path, *({"prompt": str(n), "output_tokens": 5} for n in range(20)))
    parts = divide(read_files([path], longest=100, seed=0), past=5, calibration=3, runs=2, each=6)
    prompts = [row.prompt for row in [*parts.past, *parts.calibration, *parts.measured]]
    assert len(prompts) == len(set(prompts)) == 20


def test_too_few_rows_are_said_so(tmp_path):
    path = write(tmp_path, {"prompt": "one", "output_tokens": 5})
    with pytest.raises(TooFewRowsError, match="4 rows"):
        divide(read_files([path], longest=100, seed=0), past=1, calibration=1, runs=1, each=2)


def test_arrivals_have_the_rate_that_was_asked_for():
    times = poisson_times(5000, 20.0, seed=1)
    assert times[0] == 0.0
    assert times == sorted(times)
    assert len(times) / times[-1] == pytest.approx(20.0, rel=0.05)
    assert times == poisson_times(5000, 20.0, seed=1)
