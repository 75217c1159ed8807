import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from model2vec import StaticModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from gateway.prediction import distill
from gateway.prediction.embedder import (
    EMBEDDING_DIMS,
    STATIC_DIRECTORY,
    TEXT_CHARS,
    NoEmbedder,
    StaticEmbedder,
    excerpt,
    load_embedder,
)

WORDS = ["[UNK]", "sum", "##mar", "##ize", "this", "text", "!", "write", "code"]

SERVE = """
import sys
from gateway.prediction.embedder import load_embedder
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Predictor
predictor = Predictor()
predictor.use_embedder(load_embedder("static"))
assert predictor.embedder == "static", predictor.embedder
one = PredictionInput(app="a", model="m", text="Summarize this!", text_bytes=15)
assert predictor.forecast(one, None).learned.vector[-64:].any()
heavy = {"torch", "transformers", "sentence_transformers", "scipy", "model2vec", "tokenizers", "sklearn", "catboost"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(WORDS), EMBEDDING_DIMS)).astype(np.float32)


@pytest.fixture(scope="module")
def embedder(vectors, tmp_path_factory) -> StaticEmbedder:
    """A static embedder of nine tokens."""
    directory = tmp_path_factory.mktemp("static") / "model"
    distill.write(directory, vectors, WORDS)
    return StaticEmbedder(directory)


def test_serving_imports_only_numpy_and_cachetools():
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["Summarize this text!", "this  THIS\nthis", "write code!code", "summarize!"])
def test_embeddings_equal_those_of_model2vec(vectors, embedder, text):
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    expected = StaticModel(vectors, tokenizer).encode([text], use_multiprocessing=False)
    expected /= np.linalg.norm(expected)
    for _ in range(2):  # new words, then known words
        np.testing.assert_allclose(embedder.embed([text]), expected, atol=0.01)  # vectors are stored in 8 bits


def test_an_empty_text_is_zero_and_order_is_kept(embedder):
    vectors = embedder.embed(["", "code", "text"])
    assert vectors.shape == (3, EMBEDDING_DIMS)
    assert not vectors[0].any()
    np.testing.assert_array_equal(vectors[2], embedder.embed(["text"])[0])


def test_the_words_that_are_kept_are_bounded(embedder, monkeypatch):
    monkeypatch.setattr("gateway.prediction.embedder.MAX_WORDS", 10)
    for i in range(100):
        embedder.embed([f"word{i}"])
    assert len(embedder._tokens_of) <= 12


def test_the_shipped_embedding_is_small_and_names_its_source():
    files = {path.name: path for path in STATIC_DIRECTORY.iterdir()}
    assert sum(path.stat().st_size for path in files.values()) < 3e6
    assert files["NOTICE"].read_text() == distill.NOTICE
    assert "Apache-2.0" in distill.NOTICE
    assert distill.MODEL in distill.NOTICE


def test_off_is_zero():
    assert not NoEmbedder().embed(["a", "b"]).any()
    assert load_embedder("off").name == "off"


def test_a_missing_extra_is_a_warning_that_names_it_and_a_counted_fallback(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    fallbacks = []
    with caplog.at_level(logging.WARNING):
        embedder = load_embedder("some/model", fallbacks.append)
    assert (embedder.name, fallbacks) == ("off", ["embedder_unavailable"])
    assert "pip install 'magnus-gateway[embeddings]'" in caplog.text


def test_a_long_text_is_embedded_by_its_ends():
    short = excerpt("start " + "x" * 10_000 + " end")
    assert short.startswith("start")
    assert short.endswith("end")
    assert len(short) == TEXT_CHARS + 1


def test_weights_come_from_the_package_or_else_the_hub(monkeypatch):
    monkeypatch.setattr(distill, "PACKAGE", "no_such_package_here")
    assert distill.weights() == distill.MODEL


def test_a_failed_distillation_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def fail(directory: Path) -> None:
        raise OSError("no weights\nsecond line")

    monkeypatch.setattr(distill, "distil", fail)
    assert distill.main([str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err == "no weights\n"
    assert not list(tmp_path.iterdir())


def test_distilling_without_the_extra_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "model2vec.distill", None)
    assert distill.main([str(tmp_path / "model")]) == 1
    assert "magnus-gateway[embeddings]" in capsys.readouterr().err
