import re

import pytest
from typer.testing import CliRunner

from bench.cli import COMMANDS, PREDICTION, REALITY, app

PATHS = [[name] for name in COMMANDS]
PATHS += [["prediction", name] for name in PREDICTION] + [["reality", name] for name in REALITY]


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_benchmark_is_reachable_by_its_name(path):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output


def test_help_has_one_line_for_each_benchmark():
    output = CliRunner().invoke(app, ["--help"]).output
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", output, re.MULTILINE)
