from dataclasses import replace
from math import exp, log

import numpy as np
import pytest

from gateway.prediction.answer_memory import PRIOR_MEDIAN_TOKENS, AnswerMemory, PastAnswer
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import (
    ANCHOR,
    FEATURE_NAMES,
    N_FEATURES,
    SIZE,
    FeatureExtractor,
    vector_from_bytes,
    vector_to_bytes,
)
from gateway.prediction.prediction_input import MAX_TEXT_CHARS, PredictionInput, bounded
from gateway.prediction.text_features import TEXT_FEATURES, text_features
from gateway.training.rows import PastRow, RowMessage


def row_input(**fields) -> PredictionInput:
    return PastRow(output_tokens=1, **fields).prediction_input()


INPUTS = [
    row_input(app=app, model="llama", user=user, system=system, prompt="word " * length)
    for app, user, system, length in [
        ("chat", "ann", None, 3),
        ("chat", "bob", "Be brief.", 40),
        ("code", None, "Translate to Go.", 200),
        ("chat", "ann", "Be brief.", 12),
        ("code", None, None, 5),
    ]
]


def extractor() -> FeatureExtractor:
    return FeatureExtractor(NoEmbedder(), AnswerMemory())


def feature(vector: np.ndarray, name: str) -> float:
    return float(vector[FEATURE_NAMES.index(name)])


def cue(text: str, name: str) -> float:
    return text_features(text)[TEXT_FEATURES.index(name)]


def vectors_before_each_answer(answers: list[int]) -> list[np.ndarray]:
    features, vectors = extractor(), []
    for one, tokens in zip(INPUTS, answers, strict=True):
        vector = features.extract_one(one)
        vectors.append(vector)
        size, cut = float(vector[SIZE]), tokens > 100
        answer = PastAnswer(one.key, tokens, 1, size, one.text_bytes, input_tokens=tokens + 7, cut=cut)
        features.memory.learn_one(answer)
    return vectors


def test_every_feature_has_one_name():
    assert len(set(FEATURE_NAMES)) == N_FEATURES
    assert extractor().extract_one(INPUTS[0]).shape == (N_FEATURES,)


@pytest.mark.parametrize("at", range(len(INPUTS)))
def test_no_answer_leaks_into_its_own_features_or_those_before_it(at):
    answers = [10, 50, 400, 20, 90]
    changed = [*answers[:at], *(tokens * 13 + 5 for tokens in answers[at:])]
    known, unknown = vectors_before_each_answer(answers), vectors_before_each_answer(changed)
    for before, after in zip(known[: at + 1], unknown[: at + 1], strict=True):
        np.testing.assert_array_equal(before, after)


def test_an_answer_is_in_the_features_of_the_next_request():
    first, second = (vectors_before_each_answer([tokens, 50, 400, 20, 90])[1] for tokens in (10, 1000))
    assert feature(first, "app_mean") < feature(second, "app_mean")


def test_requests_together_have_the_same_features_as_alone():
    features = extractor()
    together = features.extract(INPUTS)
    np.testing.assert_array_equal(together, np.stack([features.extract_one(one) for one in INPUTS]))
    assert features.extract([]).shape == (0, N_FEATURES)


def test_a_vector_survives_its_bytes():
    vector = vectors_before_each_answer([10, 50, 400, 20, 90])[-1]
    np.testing.assert_array_equal(vector_from_bytes(vector_to_bytes(vector)), vector)


def test_stored_bytes_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="12 bytes stored"):
        vector_from_bytes(b"\0" * 12)


def test_an_unseen_application_has_no_history_and_the_prior_as_its_anchor():
    vector = extractor().extract_one(INPUTS[0])
    assert feature(vector, "app_count") == 0.0
    assert np.isnan(feature(vector, "app_mean"))
    assert vector[ANCHOR] == pytest.approx(log(PRIOR_MEDIAN_TOKENS))


def test_a_missing_field_is_unknown_and_not_zero():
    vector = extractor().extract_one(PredictionInput(app="chat", model="llama"))
    for name in ("text_bytes", "prompt_tokens", "max_tokens", "temperature", "reasoning_effort", "size", "words"):
        assert np.isnan(feature(vector, name)), name


def test_an_exact_count_of_prompt_tokens_is_used():
    vector = extractor().extract_one(replace(INPUTS[0], prompt_tokens=1234))
    assert feature(vector, "prompt_tokens") == pytest.approx(np.log1p(1234))


def test_the_size_of_a_shortened_text_is_that_of_the_whole_text():
    long = row_input(app="a", prompt="word " * 10_000)
    assert len(long.text) == MAX_TEXT_CHARS
    vector = extractor().extract_one(long)
    assert exp(feature(vector, "size")) == pytest.approx(20_000, rel=0.01)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("Tell me in 200 words", "requested_tokens", np.log1p(280)),
        ("Write two short paragraphs.", "requested_tokens", np.log1p(220)),
        ("List 10 ideas", "requested_count", np.log1p(10)),
        ("Be brief and concise", "cue_brief", 2.0),
        ("```py\n1\n```", "cue_fence", 2.0),
        ("How tall?", "cue_question", 1.0),
        ("a1b2", "share_digit", 0.5),
        ("Привет", "share_cyrillic", 0.5),
        ("漢字", "share_han", 1 / 3),
        ("a\nb\n", "lines", np.log1p(2)),
    ],
)
def test_text_features_count_cues_and_bytes(text, name, value):
    assert cue(text, name) == pytest.approx(value)


@pytest.mark.parametrize("text", ["\ud800", "\0", "²", "٣ words", "9" * 5000 + " words", "?" * 10_000])
def test_unusual_text_has_finite_features(text):
    vector = extractor().extract_one(row_input(app="a", prompt=text))
    assert not np.isinf(vector).any()


def test_a_long_text_keeps_its_start_and_its_end():
    text = bounded("start" + "x" * 100_000 + "end")
    assert text.startswith("start")
    assert text.endswith("end")
    assert len(text) == MAX_TEXT_CHARS


def test_messages_give_the_last_user_message_and_the_system_prompt():
    one = row_input(
        app="chat",
        messages=[
            RowMessage("system", "Be brief."),
            RowMessage("user", "Hi"),
            RowMessage("assistant", "Hello"),
            RowMessage("user", "Why?"),
        ],
    )
    assert (one.text, one.system, one.message_count, one.text_bytes) == ("Why?", "Be brief.", 4, 20)
    assert one.key.template is not None


def test_token_counts_of_a_past_request_are_not_in_the_input():
    row = PastRow(app="chat", prompt="Hi", input_tokens=99, output_tokens=7)
    assert row.prediction_input() == row_input(app="chat", prompt="Hi")
