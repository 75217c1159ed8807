import random

import pytest

from gateway.simulation.times import Pattern, arrival_times
from gateway.simulation.workload import arrivals
from tests.unit.gateway.simulation.past_rows import rows


def times(count, rate, **options):
    return arrival_times(count, rate, random.Random(0), **options)


def test_times_are_stretched_to_a_rate():
    arriving = arrivals(rows(11, t=lambda i: 100.0 + i**2), count=None, rate=2.0, seed=0)
    assert arriving[0].arrival_s == 0.0
    assert arriving[-1].arrival_s == pytest.approx(5.0)
    assert arriving[1].arrival_s == pytest.approx(0.05)


def test_times_stay_as_they_are_without_a_rate():
    arriving = arrivals(rows(3, t=lambda i: 10.0 + 2 * i), count=None, rate=None, seed=0)
    assert [arrival.arrival_s for arrival in arriving] == [0.0, 2.0, 4.0]


def test_rows_with_times_repeat_after_the_mean_gap():
    arriving = arrivals(rows(3, t=lambda i: 5.0 * i), count=7, rate=None, seed=0)
    assert [arrival.arrival_s for arrival in arriving] == [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]
    assert [arrival.row for arrival in arriving] == [0, 1, 2, 0, 1, 2, 0]


def test_rows_without_times_need_a_rate():
    with pytest.raises(ValueError, match="rate"):
        arrivals(rows(3), count=None, rate=None, seed=0)


def test_rows_without_an_answer_are_an_error():
    with pytest.raises(ValueError, match="no row has an answer"):
        arrivals(rows(3, output_tokens=0), count=None, rate=1.0, seed=0)


def test_the_trace_pattern_needs_times():
    with pytest.raises(ValueError, match="pattern"):
        times(3, 1.0, pattern=Pattern.TRACE)


def test_poisson_arrivals_have_the_rate():
    drawn = times(20_000, 50.0, pattern=Pattern.POISSON)
    assert drawn == sorted(drawn)
    assert 20_000 / drawn[-1] == pytest.approx(50.0, rel=0.03)


def test_half_of_a_burst_arrives_in_a_twentieth_of_the_time():
    drawn = times(20_000, 100.0, pattern=Pattern.BURST)
    in_burst = sum(95.0 <= t <= 105.0 for t in drawn)
    assert drawn == sorted(drawn)
    assert drawn[-1] == pytest.approx(200.0, rel=0.01)
    assert in_burst / 20_000 == pytest.approx(0.5, abs=0.02)


def test_every_row_is_drawn_once_before_any_is_drawn_again():
    drawn = [arrival.row for arrival in arrivals(rows(20), count=45, rate=1.0, seed=0)]
    assert sorted(drawn[:20]) == sorted(drawn[20:40]) == list(range(20))
    assert drawn[:20] != list(range(20))
