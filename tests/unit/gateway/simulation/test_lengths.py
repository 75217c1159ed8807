import pytest

from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.lengths import ForecastLengths, RandomLengths, ScaledLengths
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows

ARRIVING = arrivals(rows(50, output_tokens=lambda i: 10 + i), count=None, rate=1.0, seed=0)


def test_factor_one_gives_the_true_length():
    assert [round(ScaledLengths(1.0).predict(one).quantile(0.9)) for one in ARRIVING] == [
        one.output_tokens for one in ARRIVING
    ]


def test_a_scaled_length_is_wrong_by_its_factor():
    assert ScaledLengths(10.0).predict(ARRIVING[0]).quantile(0.5) == pytest.approx(
        10 * ARRIVING[0].output_tokens, rel=1e-3
    )


def test_each_row_gets_its_own_forecast():
    forecasts = [LengthQuantiles.of((float(100 * (row + 1)),) * 6) for row in range(50)]
    assert all(round(ForecastLengths(forecasts).predict(one).quantile(0.5)) == 100 * (one.row + 1) for one in ARRIVING)


def test_random_lengths_are_the_same_in_every_run():
    drawn = [round(RandomLengths([7, 77, 777]).predict(one).quantile(0.5)) for one in ARRIVING]
    again = [round(RandomLengths([7, 77, 777]).predict(one).quantile(0.5)) for one in reversed(ARRIVING)]
    assert set(drawn) == {7, 77, 777}
    assert drawn == again[::-1]
