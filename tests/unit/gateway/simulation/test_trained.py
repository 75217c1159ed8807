import pytest

from backends.simulator.config import EngineConfig
from gateway.prediction.embedder import NoEmbedder
from gateway.simulation.trained import split_rows, trained_workload
from gateway.training.rows import PastRow
from tests.unit.gateway.simulation.past_rows import two_apps


def test_rows_with_times_are_split_at_a_point_in_time():
    rows = [PastRow(app="a", output_tokens=5, t=float(t)) for t in (3, 1, 4, 2, 0, 5)]
    training, simulated = split_rows(rows)
    assert [row.t for row in training] == [0.0, 1.0, 2.0]
    assert [row.t for row in simulated] == [3.0, 4.0, 5.0]


def test_rows_of_one_group_stay_on_one_side():
    rows = [PastRow(app="a", prompt=str(i), output_tokens=5, group=str(i // 10)) for i in range(300)]
    training, simulated = split_rows(rows)
    assert len(training) + len(simulated) == 300
    assert not {row.group for row in training} & {row.group for row in simulated}
    assert min(len(training), len(simulated)) > 50


def test_rows_without_an_answer_are_in_neither_part():
    training, simulated = split_rows([*two_apps(40), PastRow(app="a", prompt="x", output_tokens=0)])
    assert len(training) + len(simulated) == 40


def test_too_few_rows_to_train_on_are_an_error():
    with pytest.raises(ValueError, match="rows to train on"):
        trained_workload("x", two_apps(100), EngineConfig(), NoEmbedder())
