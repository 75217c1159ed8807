"""Embeddings of texts: the static model that is shipped, any sentence transformer, or none.

The static model is a table of token vectors; the embedding of a text is their mean. The folder `static_embedding` holds
the table, and `gateway.prediction.distill` makes it from a sentence transformer. Reading it needs only numpy: the
tokenizer is BERT's, written out here, because nearly every text has a word that was not seen before.

Source: Tulkens & van Dongen, Model2Vec (2024); Reimers & Gurevych, Sentence-BERT (arXiv 1908.10084); Wu et al.,
Google's Neural Machine Translation System (arXiv 1609.08144), sec. 4.1, for word pieces; Devlin et al., BERT.
"""

import logging
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

EMBEDDING_DIMS = 64
"""Dimensions of every embedder's vectors; the length model compresses them further."""

TEXT_CHARS = 512
"""Characters of a text that are embedded, half from its start, half from its end."""

STATIC_DIRECTORY = Path(__file__).parent / "static_embedding"
TABLE_FILE, VOCABULARY_FILE = "table.npz", "vocabulary.txt"

MAX_WORDS = 200_000
"""Words whose tokens are kept; all are dropped when there are more."""

MAX_PIECE_CHARS = 100
"""A longer run of letters and digits is the unknown token."""

UNKNOWN = "[UNK]"
_PIECES = re.compile(r"[a-z0-9]+|[^a-z0-9]")
_CJK = re.compile("([\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b81f\U0002b920-\U0002ceaf"
                  "\uf900-\ufaff\U0002f800-\U0002fa1f])")  # fmt: skip
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Co"})
_MIN_NORM = 1e-12

_log = logging.getLogger(__name__)


class Embedder(Protocol):
    """Turns texts into vectors of `EMBEDDING_DIMS` dimensions."""

    @property
    def name(self) -> str:
        """Name of the vector space; vectors of different names must not be mixed."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, EMBEDDING_DIMS) float32; the vector of an empty text is zero."""


class NoEmbedder:
    """Returns zeros; used when embeddings are off or the embedder cannot be loaded."""

    name = "off"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return zeros (n, EMBEDDING_DIMS)."""
        return np.zeros((len(texts), EMBEDDING_DIMS), np.float32)


class StaticEmbedder:
    """A static model: a vocabulary and one vector per token.

    Args:
        directory: a folder that `gateway.prediction.distill` wrote.
    """

    name = "static"

    def __init__(self, directory: Path = STATIC_DIRECTORY) -> None:
        with np.load(directory / TABLE_FILE, allow_pickle=False) as parts:
            self._table: Vectors = parts["vectors"].astype(np.float32) * parts["scales"][:, None]
        words = (directory / VOCABULARY_FILE).read_text(encoding="utf-8").split("\n")
        self._vocabulary = {word: token for token, word in enumerate(words)}
        self._tokens_of: dict[str, list[int]] = {}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return the mean token vectors (n, EMBEDDING_DIMS), scaled to unit length."""
        vectors = np.zeros((len(texts), EMBEDDING_DIMS), np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            tokens = self._tokens(excerpt(text).split())
            # The sum has the direction of the mean, and the sum of no tokens is zero.
            np.add.reduce(self._table.take(tokens, axis=0), axis=0, out=vector)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _MIN_NORM))

    def _tokens(self, words: list[str]) -> NDArray[np.intp]:
        try:
            return self._known_tokens(words)
        except KeyError:
            if len(self._tokens_of) > MAX_WORDS:
                self._tokens_of.clear()
            self._tokens_of.update((word, word_tokens(word, self._vocabulary)) for word in words)
            return self._known_tokens(words)

    def _known_tokens(self, words: list[str]) -> NDArray[np.intp]:
        return np.fromiter(chain.from_iterable(map(self._tokens_of.__getitem__, words)), np.intp)


class TransformerEmbedder:
    """A sentence transformer; it loads torch and takes tens of milliseconds per text.

    Args:
        model: a name on the hub, or a directory.

    Raises:
        ImportError: the extra `embeddings` is not installed.
        OSError: the model's weights were not found.
    """

    def __init__(self, model: str) -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ImportError(
                "sentence-transformers is not installed; run: pip install 'magnus-gateway[embeddings]'"
            ) from error
        self.name = model
        self._model = SentenceTransformer(model, device="cpu")
        dims = self._model.encode([""]).shape[1]
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(dims, dims)))[0]
        self._projection = rotation[:, :EMBEDDING_DIMS].astype(np.float32)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return random orthogonal projections (n, EMBEDDING_DIMS), which keep distances for every model size."""
        vectors = self._model.encode([excerpt(text) for text in texts], show_progress_bar=False)
        embedded = np.zeros((len(texts), EMBEDDING_DIMS), np.float32)
        embedded[:, : self._projection.shape[1]] = np.asarray(vectors) @ self._projection
        embedded[[not text for text in texts]] = 0.0
        return embedded


def load_embedder(name: str, on_fallback: Callable[[str], None] = lambda cause: None) -> Embedder:
    """Load an embedder; if that fails, log a warning and return `NoEmbedder`. Call it off the event loop.

    Args:
        name: "off", "static", or a sentence-transformers model.
        on_fallback: called with the cause if the embedder cannot be loaded.
    """
    if name == "off":
        return NoEmbedder()
    try:
        return StaticEmbedder() if name == "static" else TransformerEmbedder(name)
    except (OSError, ValueError, ImportError) as error:
        _log.warning("Embedder %r cannot be loaded, so predictions use no embeddings: %s", name, error)
        on_fallback("embedder_unavailable")
        return NoEmbedder()


def excerpt(text: str) -> str:
    """Return the start and the end of a long text."""
    if len(text) <= TEXT_CHARS:
        return text
    half = TEXT_CHARS // 2
    return f"{text[:half]} {text[-half:]}"


def word_tokens(word: str, vocabulary: Mapping[str, int]) -> list[int]:
    """Return the tokens of a word as BERT's uncased tokenizer does, without its special tokens.

    Args:
        word: without white space.
        vocabulary: ids of lower-case pieces; a piece within a word starts with "##".

    >>> word_tokens("Running!", {"run": 5, "##ning": 6, "!": 7, "[UNK]": 1})
    [5, 6, 7]
    """
    plain = word.isascii() and word.isprintable()
    pieces = _PIECES.findall(word.lower()) if plain else _unicode_pieces(word)
    return [token for piece in pieces for token in _longest_first(piece, vocabulary)]


def _unicode_pieces(word: str) -> list[str]:
    """Split at punctuation and around CJK characters; drop accents and control characters; lower the case."""
    kept = "".join(char for char in word if unicodedata.category(char) not in _DROPPED_CATEGORIES and char != "\ufffd")
    spaced = []
    for char in unicodedata.normalize("NFD", _CJK.sub(r" \1 ", kept)):
        category = unicodedata.category(char)
        if category.startswith("P") or (char.isascii() and not char.isalnum()):
            spaced.append(f" {char} ")
        elif category != "Mn":
            spaced.append(char.lower())
    return "".join(spaced).split()


def _longest_first(piece: str, vocabulary: Mapping[str, int]) -> list[int]:
    if len(piece) > MAX_PIECE_CHARS:
        return [vocabulary[UNKNOWN]]
    tokens: list[int] = []
    start = 0
    while start < len(piece):
        for end in range(len(piece), start, -1):
            known = vocabulary.get(f"##{piece[start:end]}" if start else piece[:end])
            if known is not None:
                tokens.append(known)
                start = end
                break
        else:
            return [vocabulary[UNKNOWN]]
    return tokens
