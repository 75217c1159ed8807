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
from pathlib import Path
from gateway.prediction.embedder import load_embedder
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
embedder = load_embedder("static", Path(sys.argv[1]))
assert embedder.name == "static", embedder.name
LengthPredictor(FeatureExtractor(embedder)).predict_one(PredictionInput(app="a", model="m", text="Summarize this!"))
assert "torch" not in sys.modules, "torch was imported"
assert "sentence_transformers" not in sys.modules, "sentence_transformers was imported"
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A cache that holds a static model of nine tokens."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vectors = np.random.default_rng(0).normal(size=(len(WORDS), EMBEDDING_DIMS)).astype(np.float32)
    directory = tmp_path_factory.mktemp("cache")
    StaticModel(vectors, tokenizer).save_pretrained(directory / STATIC_DIRECTORY)
    return directory


@pytest.fixture(scope="module")
def embedder(cache) -> StaticEmbedder:
    return StaticEmbedder(cache / STATIC_DIRECTORY)


def test_serving_never_imports_torch(cache):
    done = subprocess.run([sys.executable, "-c", SERVE, cache], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", ["Summarize this text!", "this  THIS\nthis", "write code!code", "summarize!"])
def test_embeds_as_the_library_does(cache, embedder, text):
    model = StaticModel.from_pretrained(cache / STATIC_DIRECTORY, force_download=False)
    expected = model.encode([text], use_multiprocessing=False)
    expected /= np.linalg.norm(expected)
    for _ in range(2):  # unseen words, then remembered ones
        np.testing.assert_allclose(embedder.embed([text]), expected, rtol=1e-4, atol=1e-6)


def test_an_empty_text_is_zero_and_order_is_kept(embedder):
    vectors = embedder.embed(["", "code", "text"])
    assert vectors.shape == (3, EMBEDDING_DIMS)
    assert not vectors[0].any()
    np.testing.assert_array_equal(vectors[2], embedder.embed(["text"])[0])


def test_off_is_zero():
    assert not NoEmbedder().embed(["a", "b"]).any()
    assert load_embedder("off", Path("nowhere")).name == "off"


def test_no_model_to_be_had_is_a_warning_and_no_embeddings(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gateway.prediction.embedder.sys.executable", "/bin/false")
    with caplog.at_level(logging.WARNING):
        embedder = load_embedder("static", tmp_path / "cache")
    assert embedder.name == "off"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


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
    monkeypatch.setattr(distill.os, "nice", lambda _: 0)
    assert distill.main([str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err == "no weights\n"
    assert not list(tmp_path.iterdir())
