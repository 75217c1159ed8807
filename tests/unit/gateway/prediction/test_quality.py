import pytest

from gateway.prediction.predictor import QUALITY_WINDOW, RecentQuality


def of(*rows):
    quality = RecentQuality()
    for row in rows:
        quality.learn_one(*row)
    return quality


def test_quality_is_unknown_before_the_first_row():
    quality = RecentQuality()
    assert (quality.seen, quality.mae(), quality.p90_coverage(), quality.kendall_tau()) == (0, None, None, None)


def test_the_error_is_the_mean_absolute_one():
    assert of((10, 0, 14), (10, 0, 4)).mae() == 5.0


def test_an_answer_as_long_as_its_quantile_is_covered():
    assert of((1, 10, 10), (1, 10, 11)).p90_coverage() == 0.5


@pytest.mark.parametrize(
    ("pairs", "tau"),
    [
        ([(1, 1), (2, 2), (3, 3)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2)], 1 / 3),
        ([(1, 1), (1, 2)], None),
        ([(1, 1)], None),
    ],
)
def test_tau_measures_the_order(pairs, tau):
    assert of(*((predicted, 0, actual) for predicted, actual in pairs)).kendall_tau() == pytest.approx(tau)


def test_only_the_last_rows_count():
    quality = of(*[(0, 0, 100)] * QUALITY_WINDOW, *[(50, 60, 50)] * QUALITY_WINDOW)
    assert (quality.mae(), quality.p90_coverage(), quality.seen) == (0.0, 1.0, 2 * QUALITY_WINDOW)
