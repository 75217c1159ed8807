from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from backends.simulator.workload import Message, WorkloadRow
from gateway.prediction import history_features
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import (
    ANCHOR,
    FEATURE_NAMES,
    N_FEATURES,
    FeatureExtractor,
    vector_from_bytes,
    vector_to_bytes,
)
from gateway.prediction.history import PRIOR_MEDIAN_TOKENS
from gateway.prediction.history_features import HistoryFeatures
from gateway.prediction.prediction_input import MAX_TEXT_CHARS, HistoryKey, PredictionInput, bounded
from gateway.prediction.text_features import TEXT_FEATURES, text_features

ASKS = [
    PredictionInput.of_row(WorkloadRow(app=app, model="llama", user=user, system=system, prompt="word " * length))
    for app, user, system, length in [
        ("chat", "ann", None, 3),
        ("chat", "bob", "Be brief.", 40),
        ("code", None, "Translate to Go.", 200),
        ("chat", "ann", "Be brief.", 12),
        ("code", None, None, 5),
    ]
]


def extractor() -> FeatureExtractor:
    return FeatureExtractor(NoEmbedder())


def feature(vector: np.ndarray, name: str) -> float:
    return float(vector[FEATURE_NAMES.index(name)])


def cue(text: str, name: str) -> float:
    return text_features(text)[TEXT_FEATURES.index(name)]


def vectors_before_each_answer(answers: list[int]) -> list[np.ndarray]:
    features, vectors = extractor(), []
    for ask, tokens in zip(ASKS, answers, strict=True):
        vector = features.extract_one(ask)
        vectors.append(vector)
        features.learn_one(ask.key, vector, tokens, input_tokens=tokens + 7, cut=tokens > 100)
    return vectors


def test_each_feature_has_its_own_name_and_place():
    assert len(set(FEATURE_NAMES)) == N_FEATURES
    assert extractor().extract_one(ASKS[0]).shape == (N_FEATURES,)


@pytest.mark.parametrize("at", range(len(ASKS)))
def test_no_answer_leaks_into_its_own_features_or_those_before_it(at):
    answers = [10, 50, 400, 20, 90]
    changed = [*answers[:at], *(tokens * 13 + 5 for tokens in answers[at:])]
    known, unknown = vectors_before_each_answer(answers), vectors_before_each_answer(changed)
    for before, after in zip(known[: at + 1], unknown[: at + 1], strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_answer_is_in_the_features_of_the_next_request():
    first, second = (vectors_before_each_answer([tokens, 50, 400, 20, 90])[1] for tokens in (10, 1000))
    assert feature(first, "app_mean") < feature(second, "app_mean")


def test_training_sees_what_serving_sees():
    features = extractor()
    together = features.extract(ASKS)
    np.testing.assert_array_equal(together, np.stack([features.extract_one(ask) for ask in ASKS]))
    assert features.extract([]).shape == (0, N_FEATURES)


def test_a_vector_comes_back_from_its_bytes():
    vector = vectors_before_each_answer([10, 50, 400, 20, 90])[-1]
    np.testing.assert_array_equal(vector_from_bytes(vector_to_bytes(vector)), vector)


def test_stored_bytes_of_another_length_are_refused():
    with pytest.raises(ValueError, match="12 bytes stored"):
        vector_from_bytes(b"\0" * 12)


def test_an_unseen_application_has_no_history_and_the_prior_as_its_anchor():
    vector = extractor().extract_one(ASKS[0])
    assert feature(vector, "app_count") == 0.0
    assert np.isnan(feature(vector, "app_mean"))
    assert vector[ANCHOR] == pytest.approx(log(PRIOR_MEDIAN_TOKENS))


def test_what_a_request_does_not_say_is_unknown_not_zero():
    vector = extractor().extract_one(PredictionInput(app="chat", model="llama"))
    for name in ("text_bytes", "prompt_tokens", "max_tokens", "temperature", "reasoning_effort", "size", "words"):
        assert np.isnan(feature(vector, name)), name


def test_an_exact_count_of_prompt_tokens_is_taken():
    vector = extractor().extract_one(replace(ASKS[0], prompt_tokens=1234))
    assert feature(vector, "prompt_tokens") == pytest.approx(np.log1p(1234))


def test_the_size_of_a_cut_text_is_that_of_the_whole():
    long = PredictionInput.of_row(WorkloadRow(app="a", prompt="word " * 10_000))
    assert len(long.text) == MAX_TEXT_CHARS
    vector = extractor().extract_one(long)
    assert exp(feature(vector, "size")) == pytest.approx(20_000, rel=0.01)


def test_history_learns_the_line_from_size_to_length():
    history, key = HistoryFeatures(), HistoryKey("app", "model")
    for i in range(200):
        history.learn_one(key, log(10 + i % 50), 3.0 * (10 + i % 50))
    _, anchor = history.features_one(key, log(40))
    assert exp(anchor) == pytest.approx(120, rel=0.05)


def test_a_user_is_told_from_the_application():
    history = HistoryFeatures()
    for _ in range(50):
        history.learn_one(HistoryKey("app", "model", user="terse"), np.nan, 5)
        history.learn_one(HistoryKey("app", "model", user="verbose"), np.nan, 500)
    _, terse = history.features_one(HistoryKey("app", "model", user="terse"), np.nan)
    _, new = history.features_one(HistoryKey("app", "model", user="new"), np.nan)
    assert exp(terse) == pytest.approx(5, rel=0.5)
    assert 5 < exp(new) < 500


def test_history_forgets_the_levels_longest_unused(monkeypatch):
    monkeypatch.setattr(history_features, "MAX_LEVELS", 10)
    history = HistoryFeatures()
    for i in range(50):
        history.learn_one(HistoryKey(f"app-{i}", "model"), 1.0, 10)
    assert len(history._levels) == 10


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("Tell me in 200 words", "asked_tokens", np.log1p(280)),
        ("Write two short paragraphs.", "asked_tokens", np.log1p(220)),
        ("List 10 ideas", "asked_count", np.log1p(10)),
        ("Be brief and concise", "cue_brief", 2.0),
        ("```py\n1\n```", "cue_fence", 2.0),
        ("How tall?", "cue_question", 1.0),
        ("a1b2", "share_digit", 0.5),
        ("Привет", "share_cyrillic", 0.5),
        ("漢字", "share_han", 1 / 3),
        ("a\nb\n", "lines", np.log1p(2)),
    ],
)
def test_text_shows_what_is_asked(text, name, value):
    assert cue(text, name) == pytest.approx(value)


@pytest.mark.parametrize("text", ["\ud800", "\0", "²", "٣ words", "9" * 5000 + " words", "?" * 10_000])
def test_odd_text_has_features_too(text):
    vector = extractor().extract_one(PredictionInput.of_row(WorkloadRow(app="a", prompt=text)))
    assert not np.isinf(vector).any()


def test_a_long_text_keeps_its_start_and_its_end():
    text = bounded("start" + "x" * 100_000 + "end")
    assert text.startswith("start")
    assert text.endswith("end")
    assert len(text) == MAX_TEXT_CHARS


def test_messages_give_the_last_question_and_the_system_prompt():
    row = WorkloadRow(
        app="chat",
        messages=[
            Message("system", "Be brief."),
            Message("user", "Hi"),
            Message("assistant", "Hello"),
            Message("user", "Why?"),
        ],
    )
    ask = PredictionInput.of_row(row)
    assert (ask.text, ask.system, ask.message_count, ask.text_bytes) == ("Why?", "Be brief.", 4, 20)
    assert ask.key.template is not None


def test_token_counts_of_a_past_request_stay_unread():
    row = WorkloadRow(app="chat", prompt="Hi", input_tokens=99, output_tokens=7)
    assert PredictionInput.of_row(row) == PredictionInput.of_row(WorkloadRow(app="chat", prompt="Hi"))
