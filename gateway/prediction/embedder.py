"""Embeddings of texts: a static model distilled from a sentence transformer, any sentence transformer, or none.

The static model is a table of token vectors; a text's embedding is their mean. It is read by model2vec's numpy loader,
so the process that serves never imports torch. It is distilled once, by `gateway.prediction.distill`, in a process of
its own, and kept in a cache directory.

Source: Tulkens & van Dongen, Model2Vec (2024); Reimers & Gurevych, Sentence-BERT (arXiv 1908.10084).
"""

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from model2vec import StaticModel
from numpy.typing import NDArray

from gateway.prediction.wordpiece import plain_word_tokens

Vectors = NDArray[np.float32]

EMBEDDING_DIMS = 64
"""Dimensions of every embedder's vectors; the length model compresses them further."""

TEXT_CHARS = 512
"""Characters of a text that are embedded, half from its start, half from its end."""

_MIN_NORM = 1e-12
_MAX_WORDS = 200_000

STATIC_DIRECTORY = "all-MiniLM-L6-v2-static-64"
DISTILL_TIMEOUT_S = 600.0

_logger = logging.getLogger(__name__)


class Embedder(Protocol):
    """Turns texts into vectors of `EMBEDDING_DIMS` dimensions."""

    @property
    def name(self) -> str:
        """Names the space: vectors of two names must not be mixed."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, EMBEDDING_DIMS) float32; an empty text's vector is zero."""


class NoEmbedder:
    """Stands in where embeddings are off or no model is to be had: every vector is zero."""

    name = "off"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return zeros (n, EMBEDDING_DIMS)."""
        return np.zeros((len(texts), EMBEDDING_DIMS), np.float32)


class StaticEmbedder:
    """A distilled static model, in numpy alone.

    Args:
        directory: where `gateway.prediction.distill` left the model.
    """

    name = "static"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        model = StaticModel.from_pretrained(directory, quantize_to="float32", force_download=False)
        self._tokenizer = model.tokenizer
        self._table = np.ascontiguousarray(model.embedding, np.float32)
        self._vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        self._tokens_of: dict[str, list[int]] = {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the mean token vectors (n, EMBEDDING_DIMS), of unit length."""
        vectors = np.zeros((len(texts), EMBEDDING_DIMS), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            tokens = self._tokens(excerpt(text).split())
            # the sum has the mean's direction, and an empty one is zero
            np.add.reduce(self._table.take(tokens, axis=0), axis=0, out=vector)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _MIN_NORM))

    def _tokens(self, words: list[str]) -> NDArray[np.intp]:
        """Return the tokens of words; the tokenizer splits at white space before all else, so each word's are kept."""
        try:
            return self._known_tokens(words)
        except KeyError:
            self._tokenize(words)
            return self._known_tokens(words)

    def _known_tokens(self, words: list[str]) -> NDArray[np.intp]:
        return np.fromiter(chain.from_iterable(map(self._tokens_of.__getitem__, words)), np.intp)

    def _tokenize(self, words: list[str]) -> None:
        known = self._tokens_of
        if len(known) > _MAX_WORDS:
            known.clear()
        foreign: list[str] = []
        for word in words:
            if word not in known:
                tokens = plain_word_tokens(word, self._vocabulary)
                known[word] = tokens or []
                if tokens is None:
                    foreign.append(word)
        if foreign:
            encodings = self._tokenizer.encode(foreign, is_pretokenized=True, add_special_tokens=False)
            for position, token in zip(encodings.word_ids, encodings.ids, strict=True):
                known[foreign[position]].append(token)


class TransformerEmbedder:
    """A sentence transformer, by name; it brings torch into the process and costs tens of milliseconds a text.

    Args:
        model: a name on the hub, or a directory.
    """

    def __init__(self, model: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = model
        self._model = SentenceTransformer(model, device="cpu")
        dims = self._model.encode([""]).shape[1]
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0]
        self._projection = rotation[:, :EMBEDDING_DIMS].astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return random orthogonal projections (n, EMBEDDING_DIMS): distances survive, whatever the model's size."""
        vectors = self._model.encode([excerpt(text) for text in texts], show_progress_bar=False)
        embedded = np.zeros((len(texts), EMBEDDING_DIMS), np.float32)
        embedded[:, : self._projection.shape[1]] = np.asarray(vectors) @ self._projection
        embedded[[not text for text in texts]] = 0.0
        return embedded


def load_embedder(name: str, cache: Path) -> Embedder:
    """Load the embedder of a configuration; where that fails, warn and go on without embeddings.

    Args:
        name: "off", "static", or a sentence-transformers model.
        cache: directory in which the static model is kept. It is distilled into it, in a process of its own, if it
            is not there yet: call this off the event loop.
    """
    if name == "off":
        return NoEmbedder()
    try:
        return StaticEmbedder(static_model(cache)) if name == "static" else TransformerEmbedder(name)
    except (OSError, ValueError, ImportError, subprocess.SubprocessError) as error:
        _logger.warning("Prediction goes on without embeddings: embedder %r could not be loaded: %s", name, error)
        return NoEmbedder()


def static_model(cache: Path) -> Path:
    """Return the directory of the static model, distilled now if the cache lacks it.

    Raises:
        OSError: the distillation failed, for want of the model's weights or of a writable cache.
        subprocess.TimeoutExpired: it took more than `DISTILL_TIMEOUT_S`.
    """
    directory = cache / STATIC_DIRECTORY
    if directory.is_dir():
        return directory
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gateway.prediction.distill", os.fspath(directory)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=DISTILL_TIMEOUT_S, check=False)
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2]
        raise OSError(f"distilling it failed: {reason}")
    return directory


def excerpt(text: str) -> str:
    """Return the start and the end of a long text."""
    if len(text) <= TEXT_CHARS:
        return text
    half = TEXT_CHARS // 2
    return f"{text[:half]} {text[-half:]}"
