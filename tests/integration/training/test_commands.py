"""The commands around training, as their users run them."""

import json
import random

import pytest
from typer.testing import CliRunner

from gateway.cli import evaluate
from gateway.cli.main import app


@pytest.fixture
def magnus(database_url, monkeypatch, tmp_path):
    """Returns a function that runs a command on the test's database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAGNUS_DATABASE_URL", database_url)
    monkeypatch.setenv("MAGNUS_PREDICTION_EMBEDDER", "off")
    monkeypatch.setenv("MAGNUS_PREDICTION_MIN_TRAIN_ROWS", "300")
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def past(tmp_path):
    """A file of past requests; their texts determine the lengths of the answers."""
    draw = random.Random(5)

    def row(number: int) -> dict[str, object]:
        long = draw.random() < 0.5
        prompt = f"{'List several examples of' if long else 'Say what is'} {'item ' * draw.randint(5, 15)}"
        tokens = round((500 if long else 20) * draw.lognormvariate(0, 0.1))
        app = draw.choice(["chat", "mail"])
        return {"app": app, "user": "ann", "user_input": prompt, "output_tokens": tokens, "group": str(number // 2)}

    path = tmp_path / "past.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in range(600)))
    return path


def test_a_bad_line_at_the_end_of_a_big_file_imports_nothing(magnus, past):
    with past.open("a") as file:
        file.write('{"app": "chat", "output_tokens": -3}\n')
    result = magnus("history", "import", past, "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip().splitlines()[-1] == f"magnus: {past}:601: output_tokens: Expected int >= 0"
    assert json.loads(magnus("train", "--json").stdout)["rows"] == 0


def test_a_bad_second_file_imports_nothing(magnus, past, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    result = magnus("history", "import", past, empty)
    assert result.exit_code == 2
    assert f"{empty}: no rows in it" in result.stderr
    assert json.loads(magnus("train", "--json").stdout)["rows"] == 0


def test_import_train_promote_and_roll_back(magnus, past):
    imported = json.loads(magnus("history", "import", past, "--json").stdout)
    assert (imported["rows"], imported["apps"], imported["users"]) == (600, 2, 2)
    trained = json.loads(magnus("train", "--json").stdout)
    assert trained["outcome"] == "promoted"
    [listed] = json.loads(magnus("predictor", "list", "--json").stdout)["versions"]
    assert (listed["version"], listed["status"], listed["metrics"]) == (1, "serving", trained["metrics"])
    assert json.loads(magnus("predictor", "rollback", "--json").stdout) == {"serving": None}
    assert magnus("predictor", "rollback").exit_code == 2
    assert json.loads(magnus("predictor", "promote", 1, "--json").stdout) == {"serving": 1}
    assert magnus("predictor", "promote", 7).exit_code == 2
    assert "serving" in magnus("predictor", "list").stdout


def test_too_few_rows_to_train_on_are_an_error(magnus):
    result = magnus("train")
    assert result.exit_code == 1
    assert "too few requests to train on: 0 have features, 300 are needed" in result.stderr


@pytest.mark.parametrize("online", [[], ["--online"]])
def test_evaluation_reports_all_metrics_and_draws_pictures(magnus, past, tmp_path, online):
    result = magnus("evaluate", past, *online, "--json", "--plots", tmp_path / "plots")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    figures = {"n", "rmse", "mae", "kendall_tau", "p90_coverage", "pinball_p90"}
    assert set(report) == figures | {"predict_ms_p50", "predict_ms_p99", "by_app"}
    assert set(report["by_app"]) == {"chat", "mail"}
    assert set(report["by_app"]["chat"]) == figures
    assert report["n"] == 600 if online else 120 < report["n"] < 240
    names = {"learning_curve", "predicted_vs_actual", "calibration", "feature_importance"}
    drawn = {path.name for path in (tmp_path / "plots").iterdir()}
    assert drawn == {f"{name}.{extension}" for name in names for extension in ("png", "svg")}


def test_evaluation_takes_traces(magnus, tmp_path):
    trace = tmp_path / "trace.csv"
    lines = (f"{n / 10},{n % 7 * 10},{n % 7 * 20 + 5},code,u{n % 3}\n" for n in range(500))
    trace.write_text("arrival_s,input_tokens,output_tokens,app,user\n" + "".join(lines))
    assert json.loads(magnus("evaluate", trace, "--online", "--json").stdout)["n"] == 500


def test_evaluation_of_too_few_rows_is_an_error(magnus, tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text('{"output_tokens": 1}\n' * 10)
    result = magnus("evaluate", path)
    assert result.exit_code == 2
    assert "too few" in result.stderr


def test_pictures_without_matplotlib_are_an_error_before_the_work(magnus, past, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "find_spec", lambda _: None)
    result = magnus("evaluate", past, "--plots", tmp_path)
    assert result.exit_code == 1
    assert "magnus-gateway[plots]" in result.stderr
