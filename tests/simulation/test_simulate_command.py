import json

import typer
from typer.testing import CliRunner

from gateway.cli.simulate import simulate
from tests.unit.gateway.cli.past_files import trace_file

app = typer.Typer()
app.command()(simulate)


def test_trained_lengths_simulate_the_half_that_was_not_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGNUS_PREDICTION_EMBEDDER", "off")
    arguments = ["--workload", str(trace_file(tmp_path)), "--lengths", "trained", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == 210
