import gzip
import json

import pytest

from backends.simulator.truth import Truth
from backends.simulator.workload import WorkloadError, read_truth, read_workload, sha_of, write_truth


def write_lines(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(params=["rows.jsonl", "rows.jsonl.gz"])
def path(request, tmp_path):
    return tmp_path / request.param


def test_truth_file_gives_the_answer_by_the_prompts_sha(path):
    write_lines(path, {"sha": sha_of("hi"), "input_tokens": 7, "output_tokens": 11})

    answer = Truth.load(truth=path).answer(sha_of("hi"))

    assert (answer.input_tokens, answer.output_tokens) == (7, 11)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "output_tokens": 5},
        {"user_input": "hi", "output_tokens": 5, "app": "CHAT"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}], "output_tokens": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "output_tokens": 5},
    ],
)
def test_workload_file_gives_the_answer_by_its_prompt(path, row):
    write_lines(path, row)

    assert Truth.load(workload=path).answer(sha_of("hi")).output_tokens == 5


def test_several_rows_of_one_prompt_serve_in_turn(path):
    write_lines(path, *({"prompt": "hi", "output_tokens": count} for count in (1, 2, 3)))
    truth = Truth.load(workload=path)

    assert [truth.answer(sha_of("hi")).output_tokens for _ in range(4)] == [1, 2, 3, 1]


def test_row_without_output_tokens_leaves_its_prompt_unknown(path):
    write_lines(path, {"prompt": "hi"})

    assert Truth.load(workload=path).answer(sha_of("hi")) == Truth().answer(sha_of("hi"))


def test_truth_file_takes_precedence_over_workload_file(tmp_path):
    truth = write_lines(tmp_path / "truth.jsonl", {"sha": sha_of("hi"), "output_tokens": 1})
    workload = write_lines(tmp_path / "workload.jsonl", {"prompt": "hi", "output_tokens": 2})

    assert Truth.load(truth=truth, workload=workload).answer(sha_of("hi")).output_tokens == 1


def test_unknown_prompt_draws_the_same_length_at_every_run():
    assert Truth(seed=1).answer("x") == Truth(seed=1).answer("x")


def test_draws_differ_by_seed_prompt_and_index():
    truth = Truth(seed=1)
    draws = [truth.answer("x"), truth.answer("y"), truth.answer("x", 1), Truth(seed=2).answer("x")]

    assert len({answer.output_tokens for answer in draws}) == 4


def test_written_truth_reads_back_without_the_prompts(tmp_path, path):
    rows = write_lines(
        tmp_path / "w.jsonl", {"prompt": "hi", "input_tokens": 3, "output_tokens": 5}, {"prompt": "no length"}
    )

    assert write_truth(path, read_workload(rows)) == 1
    assert [(row.sha, row.input_tokens, row.output_tokens) for row in read_truth(path)] == [(sha_of("hi"), 3, 5)]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "truncated"),
        ("[]", "object"),
        ({"output_tokens": 5}, "`sha`"),
        ({"sha": "ab", "output_tokens": 5}, "`sha`"),
        ({"sha": "a" * 40}, "`output_tokens`"),
        ({"sha": "a" * 40, "output_tokens": "5"}, "output_tokens"),
        ({"sha": "a" * 40, "output_tokens": 0}, "`output_tokens`"),
        ({"sha": "a" * 40, "output_tokens": 5, "input_tokens": 0}, "`input_tokens`"),
    ],
)
def test_wrong_truth_line_is_named_with_file_line_and_field(path, line, complaint):
    write_lines(path, {"sha": "a" * 40, "output_tokens": 1}, "", line)

    with pytest.raises(WorkloadError, match=complaint) as caught:
        Truth.load(truth=path)

    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("nonsense", "malformed"),
        ({"output_tokens": 5}, "`prompt`"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "hi", "output_tokens": -1}, "`output_tokens`"),
        ({"messages": [{"content": "hi"}]}, "`role`"),
    ],
)
def test_wrong_workload_line_is_named_with_file_line_and_field(path, line, complaint):
    write_lines(path, line)

    with pytest.raises(WorkloadError, match=complaint) as caught:
        list(read_workload(path))

    assert str(caught.value).startswith(f"{path}:1: ")


def test_line_with_invalid_utf8_is_a_workload_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "\xff"}\n')

    with pytest.raises(WorkloadError, match=r"rows\.jsonl:1"):
        list(read_workload(path))
