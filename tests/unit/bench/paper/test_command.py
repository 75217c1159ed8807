import json

import pytest
import typer
from typer.testing import CliRunner

from bench.paper.command import paper
from bench.paper.experiment import POLICIES

app = typer.Typer()
app.command()(paper)


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"app": "a", "prompt": f"p{i}", "input_tokens": 20, "output_tokens": 5 + i % 60, "group": str(i)})
        for i in range(100)
    ]
    path.write_text("\n".join(lines))
    return path


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments), "--lengths", "true", "--requests", "40"])


def test_one_json_object_has_every_policy_at_every_rate(workload):
    result = run("--workload", workload, "--rates", "8,4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(one["rate"], one["policy"]) for one in found["runs"]] == [
        (rate, policy) for rate in (4.0, 8.0) for policy in POLICIES
    ]
    assert {one["n"] for one in found["runs"]} == {40}


def test_the_table_fits_a_terminal(workload):
    result = run("--workload", workload, "--rates", "4")
    assert result.exit_code == 0, result.output
    assert "Magnus+q" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize("rates", ["fast", "4,-1", "0", "inf", ""])
def test_bad_rates_are_named_in_the_error(workload, rates):
    result = run("--workload", workload, "--rates", rates)
    assert result.exit_code == 2
    assert "rates" in result.stderr


def test_a_missing_file_is_named_in_the_error(tmp_path):
    result = run("--workload", tmp_path / "none.jsonl")
    assert result.exit_code == 2
    assert "none.jsonl" in result.stderr
