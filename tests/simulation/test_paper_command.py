import json

import typer
from typer.testing import CliRunner

from bench.paper.command import paper

app = typer.Typer()
app.command()(paper)


def test_results_are_written_with_their_page_and_picture(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = {"app": "a", "input_tokens": 20}
    rows = [row | {"prompt": f"p{i}", "output_tokens": 5 + i % 60, "group": str(i)} for i in range(100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    kept = tmp_path / "kept"
    arguments = ["--workload", path, "--rates", "4,8", "--lengths", "true", "--requests", "40", "--results", kept]
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in kept.iterdir()} == {"paper.json", "paper.md", "paper.png", "paper.svg"}
    assert json.loads((kept / "paper.json").read_text()) == json.loads(result.stdout)
    assert "| arrivals/s | 4 | 8 |" in (kept / "paper.md").read_text()
