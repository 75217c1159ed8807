import json

import pytest
import typer
from typer.testing import CliRunner

from bench.continuous.command import continuous
from tests.unit.gateway.cli.past_files import trace_file

app = typer.Typer()
app.command()(continuous)


def run(*arguments):
    return CliRunner().invoke(app, ["--trace-kv-tokens", "2000", "--requests", "80", *map(str, arguments)])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")  # one training for all tests in this module


@pytest.fixture
def caches(cache, monkeypatch):
    monkeypatch.setenv("MAGNUS_CACHE", str(cache))


@pytest.mark.usefixtures("caches")
def test_results_are_written_with_tables_and_pictures(tmp_path):
    kept = tmp_path / "kept"
    result = run("--trace", trace_file(tmp_path), "--quick", "--results", kept, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    policies = ["direct", "fcfs", "hrrn", "magnus", "hrrn@true"]
    assert [(one["section"], one["load"], one["policy"]) for one in found["runs"]] == [
        (section, load, policy)
        for section, load in (("loads", 0.7), ("loads", 1.2), ("burst", 0.7))
        for policy in policies
    ]
    assert {path.name for path in kept.iterdir()} == {
        "continuous.json",
        "continuous.md",
        "continuous-trace.png",
        "continuous-trace.svg",
    }
    assert json.loads((kept / "continuous.json").read_text()) == found


@pytest.mark.usefixtures("caches")
def test_the_tables_fit_a_terminal(tmp_path):
    result = run("--trace", trace_file(tmp_path), "--quick")
    assert result.exit_code == 0, result.output
    assert "trace, 2 engines: steady arrivals" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "…" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--loads", "much"), "loads"),
        (("--loads", "0"), "loads"),
        (("--engines", "2,-1"), "engines"),
        (("--engines", "1.5"), "engines"),
        (("--policies", "lifo"), "policy"),
        (("--policies", "hrrn:x"), "policy"),
        (("--instructions", "/nowhere.json"), "/nowhere.json"),
    ],
)
def test_bad_input_is_named_before_training(tmp_path, arguments, named):
    result = run("--trace", trace_file(tmp_path), *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_a_run_without_files_is_an_error():
    result = run()
    assert result.exit_code == 2
    assert "--workload or --trace" in result.stderr
