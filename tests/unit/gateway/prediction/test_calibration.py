import json

import numpy as np
import pytest

from gateway.prediction.calibration import MAX_OFFSET, Calibration
from gateway.scheduling.length import LEVELS

SCORES = np.array([-1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])
PREDICTED = np.log(100) + 0.5 * SCORES
P90, MEDIAN = LEVELS.index(0.9), LEVELS.index(0.5)


def answers(n: int, *, median: float = 100.0, sigma: float = 0.5, seed: int = 0) -> np.ndarray:
    return np.maximum(1.0, np.exp(np.log(median) + sigma * np.random.default_rng(seed).standard_normal(n)))


def coverage(calibration: Calibration, tokens: np.ndarray, app: str = "app") -> np.ndarray:
    covered = []
    for answer in tokens:
        covered.append(np.log(answer) <= calibration.adjust_one(app, PREDICTED)[P90])
        calibration.learn_one(app, PREDICTED, float(answer))
    return np.array(covered)


def fitted(tokens: np.ndarray, app: str = "app") -> Calibration:
    return Calibration().fit([app] * len(tokens), np.tile(PREDICTED, (len(tokens), 1)), tokens)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.2])
def test_covers_its_share_whatever_the_spread(sigma, seed):
    assert coverage(Calibration(), answers(4000, sigma=sigma, seed=seed))[1000:].mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_coverage_is_back_within_200_answers_of_a_jump(factor, seed):
    calibration = fitted(answers(1000, seed=seed))
    coverage(calibration, answers(200, median=100 * factor, seed=seed + 1))
    after = coverage(calibration, answers(400, median=100 * factor, seed=seed + 2))
    assert 0.85 <= after.mean() <= 0.96


def test_the_median_follows_a_jump():
    calibration = fitted(answers(1000))
    coverage(calibration, answers(200, median=300, seed=1))
    assert np.exp(calibration.adjust_one("app", PREDICTED)[MEDIAN]) == pytest.approx(300, rel=0.25)


def test_calibrated_quantiles_stay():
    calibration = fitted(answers(2000))
    coverage(calibration, answers(2000, seed=1))
    np.testing.assert_allclose(calibration.adjust_one("app", PREDICTED), PREDICTED, atol=0.15)


def test_unknown_application_starts_from_the_offsets_of_all():
    calibration = fitted(answers(2000, median=200), app="known")
    assert np.exp(calibration.adjust_one("new", PREDICTED)[MEDIAN]) == pytest.approx(200, rel=0.1)


def test_one_application_does_not_move_another():
    calibration = fitted(answers(1000), app="steady")
    before = calibration.adjust_one("steady", PREDICTED)
    coverage(calibration, answers(300, median=1000), app="moving")
    np.testing.assert_array_equal(calibration.adjust_one("steady", PREDICTED), before)


@pytest.mark.parametrize("answer", [0, 1, 10**9])
def test_offsets_are_bounded_and_quantiles_ordered(answer):
    calibration = Calibration()
    for _ in range(2000):
        calibration.learn_one("app", PREDICTED, answer)
    adjusted = calibration.adjust_one("app", PREDICTED)
    assert np.abs(calibration.apps_["app"].offsets).max() <= MAX_OFFSET
    assert (np.diff(adjusted) >= 0).all()


def test_a_few_rows_move_an_application_only_a_little():
    tokens = np.concatenate([answers(2000), answers(3, median=10_000)])
    apps = ["many"] * 2000 + ["few"] * 3
    calibration = Calibration().fit(apps, np.tile(PREDICTED, (len(tokens), 1)), tokens)
    assert np.exp(calibration.adjust_one("few", PREDICTED)[MEDIAN]) < 200


def test_the_state_survives_json():
    calibration = fitted(answers(300))
    coverage(calibration, answers(50, seed=3))
    restored = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    coverage(calibration, answers(50, seed=4))
    coverage(restored, answers(50, seed=4))
    np.testing.assert_array_equal(restored.adjust_one("app", PREDICTED), calibration.adjust_one("app", PREDICTED))
