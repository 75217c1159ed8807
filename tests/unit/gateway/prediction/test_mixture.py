import numpy as np
import pytest

from gateway.prediction import length_predictor
from gateway.prediction.length_predictor import Mixture

SCORES = np.array([-1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])
RIGHT, WRONG = np.log(100) + 0.2 * SCORES, np.log(400) + 0.2 * SCORES


def mixture_of(model, history, *, times: int, known: tuple[str, ...] = ()) -> Mixture:
    learned = Mixture(known)
    for _ in range(times):
        learned.learn_one("app", model, history, 100)
    return learned


def test_both_predictions_have_equal_weight_for_a_new_application():
    np.testing.assert_allclose(Mixture().mix_one("new", RIGHT, WRONG), (RIGHT + WRONG) / 2)


def test_the_model_has_most_weight_for_its_training_applications():
    assert Mixture(["app"]).weight("app") > 0.95


@pytest.mark.parametrize("known", [(), ("app",)])
def test_the_better_prediction_has_most_weight_after_50_answers(known):
    assert mixture_of(WRONG, RIGHT, times=50, known=known).weight("app") < 0.05
    assert mixture_of(RIGHT, WRONG, times=50, known=known).weight("app") > 0.95


def test_one_application_does_not_move_another():
    assert mixture_of(WRONG, RIGHT, times=50).weight("other") == 0.5


def test_equally_good_predictions_keep_their_weights():
    exact = np.full(6, np.log(100))
    assert mixture_of(exact, exact, times=10).weight("app") == 0.5


def test_the_least_recently_used_applications_are_dropped(monkeypatch):
    monkeypatch.setattr(length_predictor, "MAX_APPS", 3)
    learned = Mixture()
    for i in range(10):
        learned.learn_one(f"app-{i}", RIGHT, WRONG, 100)
    assert learned.weight("app-0") == 0.5
    assert learned.weight("app-9") > 0.5
