from datetime import UTC, datetime

import pytest

from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import FEATURE_VERSION
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Predictor, Version


def forecast(predictor, *, text_bytes=4000, prompt_tokens=None, max_tokens=None, context=None):
    one = PredictionInput(
        "mail", "llama", "ann", text_bytes=text_bytes, prompt_tokens=prompt_tokens, max_tokens=max_tokens
    )
    return predictor.forecast(one, context)


def learned(output_tokens, *, times=50, input_tokens=1000, sequences=1):
    predictor = Predictor()
    for _ in range(times):
        predictor.learn_one(forecast(predictor), output_tokens, sequences=sequences, input_tokens=input_tokens)
    return predictor


def test_an_unknown_user_gets_a_forecast():
    expected = forecast(Predictor())
    assert (expected.source, expected.prompt_tokens) == ("prior", 1000)
    assert 1 <= expected.p50_tokens < expected.p90_tokens


def test_an_exact_count_of_prompt_tokens_is_not_estimated():
    assert forecast(Predictor(), text_bytes=0, prompt_tokens=77).prompt_tokens == 77


def test_past_answers_are_predicted_again():
    expected = forecast(learned(600, input_tokens=2000))
    assert expected.p50_tokens == pytest.approx(600, rel=0.2)
    assert expected.prompt_tokens == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize(
    ("max_tokens", "context", "cap"), [(50, None, 50), (None, 1050, 50), (30, 1050, 30), (80, 1050, 50), (9, 500, 1)]
)
def test_an_answer_fits_its_limit_and_the_rest_of_the_context(max_tokens, context, cap):
    expected = forecast(learned(600, input_tokens=None), max_tokens=max_tokens, context=context)
    assert (expected.p50_tokens, expected.p90_tokens) == (cap, cap)


def test_the_sequences_of_a_request_are_learned_one_by_one():
    assert forecast(learned(2400, sequences=4)).p50_tokens == pytest.approx(600, rel=0.2)


def test_without_the_engine_s_count_bytes_per_token_are_not_learned():
    assert forecast(learned(600, input_tokens=None)).prompt_tokens == 1000


def test_quality_counts_every_answer():
    predictor = learned(600, times=60)
    assert predictor.quality.seen == 60
    assert predictor.quality.mae() < 400


VERSION = Version(7, datetime(2026, 1, 1, tzinfo=UTC), 1000)


class BrokenEmbedder(NoEmbedder):
    """Raises an error on every text."""

    def embed(self, texts):
        raise RuntimeError("no")


def with_features(embedder=None):
    """Return a predictor that makes features, its fallbacks and its outcomes."""
    fallbacks, outcomes = [], []
    predictor = Predictor(fallbacks.append)
    predictor.use_embedder(embedder or NoEmbedder())
    predictor.report_outcomes_to(lambda predicted, actual: outcomes.append((predicted, actual)))
    return predictor, fallbacks, outcomes


def test_features_are_made_while_history_still_forecasts():
    predictor, _, _ = with_features()
    expected = forecast(predictor)
    assert (expected.source, predictor.features_version) == ("prior", f"{FEATURE_VERSION}:off")
    assert expected.learned is not None


def test_a_version_that_serves_is_named_as_the_source():
    predictor, _, _ = with_features()
    predictor.serve(None, VERSION)
    assert forecast(predictor).source == "model:7"
    predictor.serve(None, None)
    assert forecast(predictor).source == "prior"


def test_a_forecast_of_the_model_fits_the_rest_of_the_context():
    predictor, _, _ = with_features()
    predictor.serve(None, VERSION)
    assert forecast(predictor, context=1010).p90_tokens == 10


def test_a_model_that_fails_fails_no_request_and_is_counted():
    predictor, fallbacks, _ = with_features(BrokenEmbedder())
    predictor.serve(None, VERSION)
    assert forecast(predictor).source == "prior"
    assert fallbacks == ["prediction_failed"]


def test_outcomes_are_reported_for_drift_detection():
    predictor, _, outcomes = with_features()
    expected = forecast(predictor)
    predictor.learn_one(expected, 300, sequences=2)
    assert outcomes == [(expected.length.quantile(0.5), 150)]
