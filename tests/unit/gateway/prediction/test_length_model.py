from math import exp, log
from typing import Any

import numpy as np
import pytest

from gateway.prediction.distribution import cut_probability, expected_logs, expected_tokens
from gateway.prediction.embedder import EMBEDDING_DIMS, NoEmbedder
from gateway.prediction.evaluation import PastRequest, evaluate, evaluate_online, learn_history, split_by_group
from gateway.prediction.features import ANCHOR, FEATURE_NAMES
from gateway.prediction.fitting import MIN_ROWS, FittedPredictor, TrainingSet, fit_predictor, hide_history
from gateway.prediction.length_model import Compression, LengthModel
from gateway.prediction.length_predictor import AnchorModel, LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LEVELS

SMALL: dict[str, Any] = {"iterations": 60, "learning_rate": 0.2}
P90, MEDIAN = LEVELS.index(0.9), LEVELS.index(0.5)


def requests(n: int, *, apps: tuple[str, ...] = ("copy", "essay"), seed: int = 0) -> list[PastRequest]:
    """`copy` answers are twice as long as the prompt, `essay` ones about 300 tokens, `yes` ones one or two."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        app, words = apps[i % len(apps)], int(rng.integers(5, 200))
        center = {"copy": 2.0 * words, "essay": 300.0, "yes": 1.5}[app]
        tokens = max(1, round(center * exp(0.2 * rng.standard_normal())))
        text = "word " * words
        size = len(text)
        one = PredictionInput(app=app, model="llama", text=text, text_bytes=size, last_user_bytes=size)
        rows.append(PastRequest(one, tokens, input_tokens=words, group=f"g{i}"))
    return rows


@pytest.fixture(scope="module")
def training() -> TrainingSet:
    return learn_history(LengthPredictor(NoEmbedder()).extractor, requests(900))


@pytest.fixture(scope="module")
def fitted(training) -> FittedPredictor:
    return fit_predictor(training, LengthModel(**SMALL))


def test_quantiles_do_not_cross(fitted, training):
    assert (np.diff(fitted.model.predict(training.X), axis=1) >= 0).all()


def test_one_row_alone_is_predicted_as_among_others(fitted, training):
    together = fitted.model.predict(training.X[:5])
    np.testing.assert_allclose([fitted.model.predict_one(vector) for vector in training.X[:5]], together, rtol=1e-6)


def test_a_model_survives_its_bytes(fitted, training):
    restored = FittedPredictor.from_bytes(fitted.to_bytes())
    np.testing.assert_array_equal(restored.model.predict(training.X), fitted.model.predict(training.X))
    assert restored.model.get_params() == fitted.model.get_params()
    assert restored.calibration.to_dict() == fitted.calibration.to_dict()


def test_predictions_follow_history_outside_of_the_training_data(fitted, training):
    drifted = training.X.copy()
    drifted[:, ANCHOR] += log(3)
    drifted[:, [FEATURE_NAMES.index(f"{level}_expected") for level in ("all", "model", "app", "app_model")]] += log(3)
    moved = fitted.model.predict(drifted)[:, MEDIAN] - fitted.model.predict(training.X)[:, MEDIAN]
    assert np.median(moved) == pytest.approx(log(3), abs=0.3)


def test_a_new_application_is_learned_from_its_first_answers(fitted):
    predictor = LengthPredictor(NoEmbedder())
    learn_history(predictor.extractor, requests(600))
    predictor.serve(fitted)
    for row in requests(50, apps=("yes",), seed=1):
        predictor.learn_one(predictor.predict_one(row.input), row.output_tokens)
    medians = [predictor.predict_one(row.input).length.quantile(0.5) for row in requests(20, apps=("yes",), seed=2)]
    assert np.median(medians) < 6


def test_hidden_history_leaves_the_level_above_as_the_anchor(training):
    hidden = hide_history(training.X, 1.0, np.random.default_rng(0))
    assert (hidden[:, FEATURE_NAMES.index("app_count")] == 0).all()
    assert np.isnan(hidden[:, FEATURE_NAMES.index("app_expected")]).all()
    model = hidden[:, FEATURE_NAMES.index("model_expected")]
    above = np.where(np.isnan(model), hidden[:, FEATURE_NAMES.index("all_expected")], model)
    np.testing.assert_array_equal(hidden[1:, ANCHOR], above[1:])


def test_nothing_is_hidden_without_dropout(training):
    np.testing.assert_array_equal(hide_history(training.X, 0.0, np.random.default_rng(0)), training.X)


def test_too_few_rows_are_an_error(training):
    few = TrainingSet(training.X[:50], training.tokens[:50], training.apps[:50])
    with pytest.raises(ValueError, match=f"at least {MIN_ROWS}"):
        fit_predictor(few)


def test_rows_without_groups_hold_out_the_newest(training):
    held_out = TrainingSet(training.X, training.tokens, training.apps).held_out(0.2)
    assert not held_out[:720].any()
    assert held_out[720:].all()


def test_a_model_of_another_feature_version_is_an_error(fitted, monkeypatch):
    stored = fitted.model.to_bytes()
    monkeypatch.setattr("gateway.prediction.length_model.FEATURE_VERSION", 10**6)
    with pytest.raises(ValueError, match="feature version"):
        LengthModel.from_bytes(stored)


def test_compression_keeps_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(500, 2)) @ rng.normal(size=(2, EMBEDDING_DIMS))).astype(np.float32)
    compressed = Compression.fit(vectors, 2)(vectors)
    assert np.sum(compressed.var(axis=0)) == pytest.approx(np.sum(vectors.var(axis=0)), rel=1e-3)


def test_before_the_first_training_history_predicts():
    X = learn_history(LengthPredictor(NoEmbedder()).extractor, requests(400, apps=("copy",))).X[200:]
    tokens = np.array([row.output_tokens for row in requests(400, apps=("copy",))[200:]])
    logs = AnchorModel().predict(X)
    assert np.median(np.abs(np.exp(logs[:, MEDIAN]) / tokens - 1)) < 0.25
    assert np.mean(tokens <= np.exp(logs[:, P90])) == pytest.approx(0.9, abs=0.06)
    np.testing.assert_allclose(AnchorModel().predict_one(X[0]), logs[0])


def test_a_forecast_respects_max_tokens(fitted, training):
    predictor = LengthPredictor(NoEmbedder())
    learn_history(predictor.extractor, requests(600))
    predictor.serve(fitted)
    one = PredictionInput(
        app="essay", model="llama", text="word " * 50, text_bytes=250, last_user_bytes=250, max_tokens=20
    )
    forecast = predictor.predict_one(one)
    assert forecast.length.quantile(0.95) <= 20
    assert forecast.expected_tokens <= 20
    assert forecast.cut_probability is not None
    assert forecast.cut_probability > 0.9


def test_a_batch_is_forecast_as_each_alone(fitted):
    predictor = LengthPredictor(NoEmbedder())
    predictor.serve(fitted)
    inputs = [row.input for row in requests(7)]
    for together, one in zip(predictor.predict(inputs), inputs, strict=True):
        alone = predictor.predict_one(one)
        np.testing.assert_allclose(together.logs, alone.logs, rtol=1e-6)
        assert together.expected_tokens == pytest.approx(alone.expected_tokens)


def test_mean_and_cut_follow_the_quantiles():
    logs = np.full((3, len(LEVELS)), log(100.0))
    np.testing.assert_allclose(expected_tokens(logs), 100.0)
    np.testing.assert_allclose(expected_logs(logs), log(100.0))
    assert expected_tokens(logs, cap=40).tolist() == [40.0] * 3
    assert cut_probability(logs, 100).tolist() == [1.0] * 3
    assert cut_probability(logs, 200).tolist() == [0.0] * 3


def test_rows_that_share_an_input_are_never_split():
    rows = [PastRequest(row.input, row.output_tokens, group=f"g{i // 4}") for i, row in enumerate(requests(400))]
    train, test = split_by_group(rows)
    assert not {row.group for row in train} & {row.group for row in test}
    assert len(train) + len(test) == 400
    assert len(test) == pytest.approx(120, abs=40)


def test_the_same_seed_gives_the_same_split():
    rows = requests(100)
    assert split_by_group(rows, seed=3) == split_by_group(rows, seed=3)
    assert split_by_group(rows, seed=3) != split_by_group(rows, seed=4)


def test_evaluation_reports_all_and_each_application():
    metrics = evaluate(requests(900), NoEmbedder(), model=LengthModel(**SMALL)).metrics()
    assert set(metrics["by_app"]) == {"copy", "essay"}
    assert metrics["n"] == sum(own["n"] for own in metrics["by_app"].values())
    assert metrics["kendall_tau"] > 0.5
    assert metrics["p90_coverage"] == pytest.approx(0.9, abs=0.06)


def test_online_evaluation_predicts_every_row_once():
    scored = evaluate_online(requests(700), NoEmbedder(), first_training=300, model=LengthModel(**SMALL))
    assert len(scored.actual) == 700
    late, early = np.abs(scored.median - scored.actual)[300:], np.abs(scored.median - scored.actual)[:30]
    assert late.mean() < early.mean()
