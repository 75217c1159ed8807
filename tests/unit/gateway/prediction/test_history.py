import pytest

from gateway.prediction import history
from gateway.prediction.history import CONCENTRATION, PRIOR_MEDIAN_TOKENS, Caller, HistoryPredictor

ANN = Caller("mail", "llama", "ann")


def taught(*lessons):
    """A predictor that has seen (caller, tokens, times)."""
    predictor = HistoryPredictor()
    for caller, tokens, times in lessons:
        for _ in range(times):
            predictor.learn_one(caller, tokens)
    return predictor


def median(predictor, caller, max_tokens=None):
    return predictor.predict_one(caller, max_tokens).length.quantile(0.5)


def test_before_anything_is_known_the_prior_speaks():
    prediction = HistoryPredictor().predict_one(ANN, None)
    assert prediction.source == "prior"
    assert prediction.length.quantile(0.5) == pytest.approx(PRIOR_MEDIAN_TOKENS, rel=0.02)


@pytest.mark.parametrize("tokens", [3, 40, 2000])
def test_a_user_whose_answers_are_all_alike_is_known_after_some_tens(tokens):
    prediction = taught((ANN, tokens, 40)).predict_one(ANN, None)
    assert prediction.source == "history:user"
    assert prediction.length.quantile(0.5) == pytest.approx(tokens, rel=0.2)
    assert prediction.length.quantile(0.25) == pytest.approx(tokens, rel=0.2)


def test_a_new_user_is_predicted_as_the_application():
    predictor = taught((ANN, 700, 60))
    newcomer = Caller("mail", "llama", "bob")
    assert predictor.predict_one(newcomer, None).source == "history:app"
    assert median(predictor, newcomer) == median(predictor, Caller("mail", "llama"))
    assert median(predictor, newcomer) == pytest.approx(700, rel=0.2)


def test_a_new_application_is_predicted_as_the_model():
    predictor = taught((ANN, 700, 60))
    assert predictor.predict_one(Caller("chat", "llama"), None).source == "history:model"
    assert median(predictor, Caller("chat", "llama")) == pytest.approx(700, rel=0.25)


def test_a_new_model_is_predicted_as_all_together():
    predictor = taught((ANN, 700, 60))
    assert predictor.predict_one(Caller("chat", "mistral"), None).source == "history:all"
    assert median(predictor, Caller("chat", "mistral")) == pytest.approx(700, rel=0.25)


def test_a_user_who_differs_pulls_away_from_the_application_bit_by_bit():
    others = [(Caller("mail", "llama", f"u{i}"), 50, 5) for i in range(40)]
    medians = [median(taught(*others, (ANN, 2000, times)), ANN) for times in (0, 3, 8, 30)]
    assert medians == sorted(medians)
    assert medians[0] == pytest.approx(50, rel=0.2)
    assert medians[-1] == pytest.approx(2000, rel=0.2)


def test_few_answers_of_a_user_do_not_speak_for_it():
    predictor = taught((Caller("mail", "llama"), 50, 60), (ANN, 50, int(CONCENTRATION) - 1))
    assert predictor.predict_one(ANN, None).source == "history:app"


def test_users_of_one_name_in_two_applications_are_two():
    predictor = taught((ANN, 2000, 60), (Caller("chat", "llama", "ann"), 20, 60))
    assert median(predictor, ANN) > 10 * median(predictor, Caller("chat", "llama", "ann"))


def test_what_changed_is_forgotten():
    predictor = taught((ANN, 50, 1500), (ANN, 2000, 1000))
    assert median(predictor, ANN) == pytest.approx(2000, rel=0.2)


def test_several_answers_of_one_request_teach_as_much():
    together, one_by_one = HistoryPredictor(), taught((ANN, 300, 8))
    together.learn_one(ANN, 300, count=8)
    assert median(together, ANN) == pytest.approx(median(one_by_one, ANN), rel=0.02)


def test_max_tokens_bounds_every_quantile():
    prediction = taught((ANN, 700, 60)).predict_one(ANN, 100)
    assert max(prediction.length.quantile(level) for level in (0.1, 0.5, 0.99)) == 100


def test_a_warm_start_knows_what_was_known():
    predictor = HistoryPredictor()
    predictor.warm_up([(ANN, 700, 40), (Caller("chat", "llama"), 20, 40)])
    assert predictor.predict_one(ANN, None).source == "history:user"
    assert median(predictor, ANN) == pytest.approx(700, rel=0.2)
    assert median(predictor, Caller("chat", "llama", "eve")) == pytest.approx(20, rel=0.4)


def test_a_warm_start_with_a_long_past_still_learns():
    predictor = HistoryPredictor()
    predictor.warm_up([(ANN, 50, 1_000_000)])
    for _ in range(1000):
        predictor.learn_one(ANN, 2000)
    assert median(predictor, ANN) == pytest.approx(2000, rel=0.2)


def test_what_is_kept_is_bounded_and_the_longest_unused_goes(monkeypatch):
    monkeypatch.setattr(history, "MAX_LEVELS", 20)
    predictor = taught(*((Caller("mail", "llama", f"u{i}"), 700, 10) for i in range(50)))
    assert len(predictor._levels) == 20
    assert predictor.predict_one(Caller("mail", "llama", "u0"), None).source == "history:app"
    assert predictor.predict_one(Caller("mail", "llama", "u49"), None).source == "history:user"


def test_a_warm_start_is_bounded_too(monkeypatch):
    monkeypatch.setattr(history, "MAX_LEVELS", 20)
    predictor = HistoryPredictor()
    predictor.warm_up((Caller("mail", "llama", f"u{i}"), 700, 10) for i in range(50))
    assert len(predictor._levels) == 20
    assert predictor.predict_one(Caller("mail", "llama", "new"), None).source == "history:app"
