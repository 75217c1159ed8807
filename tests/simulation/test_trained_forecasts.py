from backends.simulator.config import EngineConfig
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.length_model import LengthModel
from gateway.simulation.trained import trained_forecasts, trained_workload
from gateway.training.rows import PastRow
from tests.unit.gateway.simulation.past_rows import two_apps

SMALL = {"iterations": 30, "depth": 2}


def test_forecasts_differ_by_application():
    rows = two_apps(600)
    forecasts = trained_forecasts(rows[:500], rows[500:], NoEmbedder(), LengthModel(**SMALL))
    short, long = ([forecast.quantile(0.5) for forecast in forecasts[i::2]] for i in range(2))
    assert max(short) < 30
    assert min(long) > 200


def test_a_rows_own_answer_does_not_change_its_forecast():
    rows = two_apps(600)
    others = [PastRow(app=row.app, prompt=row.prompt, input_tokens=10, output_tokens=77) for row in rows[500:]]
    forecasts, blindly = (
        trained_forecasts(rows[:500], part, NoEmbedder(), LengthModel(**SMALL)) for part in (rows[500:], others)
    )
    assert forecasts == blindly


def test_cached_forecasts_equal_the_computed_ones(tmp_path):
    made, kept = (
        trained_workload(
            "x", two_apps(500), EngineConfig(), NoEmbedder(), cache=tmp_path / "kept", model=LengthModel(**SMALL)
        )
        for _ in range(2)
    )
    assert len(list((tmp_path / "kept").iterdir())) == 1
    assert made.forecasts == kept.forecasts
    assert len(made.rows) == len(made.forecasts)
