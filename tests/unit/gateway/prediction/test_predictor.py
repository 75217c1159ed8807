from datetime import UTC, datetime

import pytest

from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Outcome, Predictor, Version


def forecast(predictor, *, text_bytes=4000, prompt_tokens=None, max_tokens=None, context=None):
    ask = PredictionInput(
        "mail", "llama", "ann", text_bytes=text_bytes, prompt_tokens=prompt_tokens, max_tokens=max_tokens
    )
    return predictor.forecast(ask, context)


def taught(output_tokens, *, times=50, input_tokens=1000, sequences=1):
    predictor = Predictor()
    for _ in range(times):
        predictor.learn_one(forecast(predictor), Outcome(input_tokens, output_tokens, sequences))
    return predictor


def test_a_stranger_gets_a_forecast_too():
    expected = forecast(Predictor())
    assert (expected.source, expected.prompt_tokens) == ("prior", 1000)
    assert 1 <= expected.p50_tokens < expected.p90_tokens


def test_a_prompt_of_token_ids_is_counted_and_not_estimated():
    assert forecast(Predictor(), text_bytes=0, prompt_tokens=77).prompt_tokens == 77


def test_what_was_seen_is_expected_again():
    expected = forecast(taught(600, input_tokens=2000))
    assert expected.p50_tokens == pytest.approx(600, rel=0.2)
    assert expected.prompt_tokens == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize(
    ("max_tokens", "context", "cap"), [(50, None, 50), (None, 1050, 50), (30, 1050, 30), (80, 1050, 50), (9, 500, 1)]
)
def test_an_answer_fits_its_limit_and_the_rest_of_the_context(max_tokens, context, cap):
    expected = forecast(taught(600, input_tokens=None), max_tokens=max_tokens, context=context)
    assert (expected.p50_tokens, expected.p90_tokens) == (cap, cap)


def test_answers_are_learned_one_by_one_though_they_came_together():
    assert forecast(taught(2400, sequences=4)).p50_tokens == pytest.approx(600, rel=0.2)


def test_an_engine_that_does_not_count_teaches_nothing_of_prompts():
    assert forecast(taught(600, input_tokens=None)).prompt_tokens == 1000


def test_every_outcome_is_measured_against_what_was_expected():
    predictor = taught(600, times=60)
    assert predictor.quality.seen == 60
    assert predictor.quality.mae() < 400


VERSION = Version(7, datetime(2026, 1, 1, tzinfo=UTC), 1000)


class BrokenPredictor(LengthPredictor):
    """A trained predictor that chokes on every text."""

    def predict_one(self, ask):
        raise RuntimeError("no")


def trained(lengths_class=LengthPredictor):
    """A predictor with features, and what its fall-backs and outcomes were told."""
    fallbacks, outcomes = [], []
    predictor = Predictor(fallbacks.append, lambda predicted, actual: outcomes.append((predicted, actual)))
    predictor.lengths = lengths_class(FeatureExtractor(NoEmbedder()))
    return predictor, fallbacks, outcomes


def test_features_are_made_though_history_still_answers():
    predictor, _, _ = trained()
    expected = forecast(predictor)
    assert (expected.source, predictor.features_version) == ("prior", predictor.lengths.extractor.version)
    assert expected.learned is not None


def test_a_version_that_serves_answers_and_says_so():
    predictor, _, _ = trained()
    predictor.serve(None, VERSION)
    assert forecast(predictor).source == "model:7"
    predictor.serve(None, None)
    assert forecast(predictor).source == "prior"


def test_a_model_s_answer_fits_the_rest_of_the_context_too():
    predictor, _, _ = trained()
    predictor.serve(None, VERSION)
    assert forecast(predictor, context=1010).p90_tokens == 10


def test_a_model_that_fails_costs_no_request_and_is_counted():
    predictor, fallbacks, _ = trained(BrokenPredictor)
    predictor.serve(None, VERSION)
    assert forecast(predictor).source == "prior"
    assert fallbacks == ["prediction_failed"]


def test_what_came_of_a_forecast_is_told_for_drift_to_be_seen():
    predictor, _, outcomes = trained()
    expected = forecast(predictor)
    predictor.learn_one(expected, Outcome(None, 300, 2))
    assert outcomes == [(expected.length.quantile(0.5), 150)]
