import numpy as np
import pytest

from gateway.prediction import mixture
from gateway.prediction.mixture import Mixture

SCORES = np.array([-1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.6449])
RIGHT, WRONG = np.log(100) + 0.2 * SCORES, np.log(400) + 0.2 * SCORES


def taught(model, history, *, times: int, known: tuple[str, ...] = ()) -> Mixture:
    learned = Mixture(known)
    for _ in range(times):
        learned.learn_one("app", model, history, 100)
    return learned


def test_a_new_application_believes_both_alike():
    np.testing.assert_allclose(Mixture().mix_one("new", RIGHT, WRONG), (RIGHT + WRONG) / 2)


def test_the_model_is_believed_about_what_it_was_trained_on():
    assert Mixture(["app"]).weight("app") > 0.95


@pytest.mark.parametrize("known", [(), ("app",)])
def test_whoever_is_right_is_believed_within_50_answers(known):
    assert taught(WRONG, RIGHT, times=50, known=known).weight("app") < 0.05
    assert taught(RIGHT, WRONG, times=50, known=known).weight("app") > 0.95


def test_one_application_does_not_move_another():
    assert taught(WRONG, RIGHT, times=50).weight("other") == 0.5


def test_two_that_are_equally_right_stay_as_they_were():
    exact = np.full(6, np.log(100))
    assert taught(exact, exact, times=10).weight("app") == 0.5


def test_applications_longest_unused_are_forgotten(monkeypatch):
    monkeypatch.setattr(mixture, "MAX_APPS", 3)
    learned = Mixture()
    for i in range(10):
        learned.learn_one(f"app-{i}", RIGHT, WRONG, 100)
    assert learned.weight("app-0") == 0.5
    assert learned.weight("app-9") > 0.5
