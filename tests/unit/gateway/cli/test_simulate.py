import json

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.simulate import simulate
from tests.unit.gateway.cli.past_files import rows_file, trace_file

CONTRACT = {
    *("policy", "n", "mean_s", "p50_s", "p90_s", "p99_s", "ttft_mean_s", "norm_ms_per_tok"),
    *("req_per_s", "tok_per_s", "preemptions", "kv_util", "max_response_ratio"),
}

app = typer.Typer()
app.command()(simulate)


def run(path, *arguments):
    return CliRunner().invoke(app, ["--workload", str(path), *map(str, arguments)])


def report(path, *arguments):
    result = run(path, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("policy", ["fcfs", "sjf", "hrrn", "magnus", "direct", "round-robin"])
def test_every_policy_reports_what_scripts_rely_on(tmp_path, policy):
    found = report(rows_file(tmp_path, count=60), "--policy", policy, "--rate", 50)
    assert found.keys() >= CONTRACT
    assert (found["policy"], found["n"]) == (policy, 60)


def test_the_exponent_is_part_of_the_policys_name(tmp_path):
    assert (
        report(rows_file(tmp_path, count=60), "--policy", "hrrn", "--alpha", 0.55, "--load", 1)["policy"] == "hrrn:0.55"
    )


def test_more_requests_than_rows_repeat_them(tmp_path):
    assert report(rows_file(tmp_path, count=50), "--rate", 20, "--rows", 120)["n"] == 120


def test_a_trace_keeps_its_times_unless_a_rate_is_given(tmp_path):
    path = trace_file(tmp_path, count=100)
    own, twice = report(path), report(path, "--rate", 20)
    assert own["n"] == twice["n"] == 100
    assert 9.9 < own["makespan_s"] < 18.0
    assert 4.9 < twice["makespan_s"] < 13.0


def test_a_bounded_queue_reports_its_drops(tmp_path):
    found = report(rows_file(tmp_path), "--rate", 5000, "--kv-tokens", 1024, "--max-queue", 10)
    assert found["dropped"] > 100
    assert found["n"] + found["dropped"] == 300
    assert found["retry_room"] is not None


@pytest.mark.parametrize("metrics", ["frozen", "none"])
def test_every_request_is_answered_without_metrics(tmp_path, metrics):
    assert report(rows_file(tmp_path, count=120), "--rate", 200, "--kv-tokens", 1024, "--metrics", metrics)["n"] == 120


def test_the_table_names_every_figure(tmp_path):
    shown = run(rows_file(tmp_path, count=60), "--rate", 50).stdout
    assert all(name in shown for name in CONTRACT - {"policy"})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "rate"),
        (("--rate", 5, "--lengths", "guessed"), "lengths"),
        (("--rate", 5, "--pattern", "trace"), "pattern"),
        (("--rate", 5, "--max-model-len", 999999), "max_model_len"),
        (("--rate", 5, "--instructions", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_bad_input_is_one_line_that_names_it(tmp_path, arguments, named):
    result = run(rows_file(tmp_path), *arguments)
    assert result.exit_code == 2
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_bad_row_is_named_by_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"app": "a", "output_tokens": 5}\n{"app": "a", "output_tokens": "many"}\n')
    result = run(path, "--rate", 5)
    assert result.exit_code == 2
    assert f"{path}:2: output_tokens" in result.stderr
