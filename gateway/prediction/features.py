"""The features of a request: the one place that makes them, for training and for serving alike.

A vector holds all that training will ever need of a request, so that no prompt has to be kept: what the request says
of itself, its text's cues, the history as of *before* it, and the embeddings of its system prompt and its text. It is
stored as bytes; `FEATURE_VERSION` rises with any change of a feature's meaning or place.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import expm1, isnan, log1p, nan

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.embedder import EMBEDDING_DIMS, Embedder
from gateway.prediction.history_features import HISTORY_FEATURES, HistoryFeatures
from gateway.prediction.prediction_input import HistoryKey, PredictionInput, utf8_bytes
from gateway.prediction.prompt_tokens import PRIOR_BYTES_PER_TOKEN, PromptTokens
from gateway.prediction.text_features import PIECES, TEXT_FEATURES, text_features

Vector = NDArray[np.float32]

FEATURE_VERSION = 1

REQUEST_FEATURES = (
    "text_bytes",
    "last_user_bytes",
    "prompt_tokens",
    "bytes_per_token",
    "system_bytes",
    "message_count",
    "max_tokens",
    "temperature",
    "sequences",
    "stop_count",
    "tools_bytes",
    "schema_bytes",
    "json_mode",
    "reasoning_effort",
    "size",
)
"""What the request says of itself; sizes and counts as log1p. `size` is the log size that history regresses on."""

FEATURE_NAMES: tuple[str, ...] = (
    *REQUEST_FEATURES,
    *TEXT_FEATURES,
    *HISTORY_FEATURES,
    "anchor",
    *(f"system_embedding_{i}" for i in range(EMBEDDING_DIMS)),
    *(f"text_embedding_{i}" for i in range(EMBEDDING_DIMS)),
)
"""Names of the (n_features,) values of a vector, in order."""

N_FEATURES = len(FEATURE_NAMES)
TEXT_BYTES = FEATURE_NAMES.index("text_bytes")
SIZE = FEATURE_NAMES.index("size")
ANCHOR = FEATURE_NAMES.index("anchor")
SYSTEM_EMBEDDING = slice(ANCHOR + 1, ANCHOR + 1 + EMBEDDING_DIMS)
TEXT_EMBEDDING = slice(SYSTEM_EMBEDDING.stop, N_FEATURES)

_EFFORTS = {"none": 0.0, "minimal": 1.0, "low": 2.0, "medium": 3.0, "high": 4.0, "xhigh": 5.0}
_MAX_SYSTEMS = 1024


class FeatureExtractor:
    """Vectors from requests, and the history that they read.

    Args:
        embedder: makes embeddings of texts, or zeros where embeddings are off.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.history = HistoryFeatures()
        self.prompt_tokens = PromptTokens()
        self._systems: OrderedDict[str | None, Vector] = OrderedDict()

    @property
    def version(self) -> str:
        """Names the meaning of the vectors: those of another version must not be mixed with them."""
        return f"{FEATURE_VERSION}:{self.embedder.name}"

    def extract_one(self, ask: PredictionInput) -> Vector:
        """Return the features (n_features,) of a request, from what was learned before it."""
        return self._vector(ask, self.embedder.embed([ask.text])[0])

    def extract(self, asks: Sequence[PredictionInput]) -> Vector:
        """Return the features (n, n_features) of requests that wait together."""
        embeddings = self.embedder.embed([ask.text for ask in asks])
        rows = [self._vector(ask, embedding) for ask, embedding in zip(asks, embeddings, strict=True)]
        return np.stack(rows) if rows else np.empty((0, N_FEATURES), np.float32)

    def learn_one(
        self,
        key: HistoryKey,
        vector: Vector,
        output_tokens: float,
        *,
        input_tokens: int | None = None,
        cut: bool = False,
    ) -> None:
        """Learn from an answer that came to its end.

        Args:
            key: whose request it was.
            vector: its features, (n_features,).
            output_tokens: the engine's count, per sequence.
            input_tokens: the engine's count of the prompt, if it told.
            cut: whether `max_tokens` ended the answer.
        """
        self.history.learn_one(key, float(vector[SIZE]), output_tokens, cut=cut)
        text_bytes = float(vector[TEXT_BYTES])
        if input_tokens is not None and not isnan(text_bytes):
            self.prompt_tokens.learn_one(key.app, key.model, round(expm1(text_bytes)), input_tokens)

    def _vector(self, ask: PredictionInput, embedding: Vector) -> Vector:
        text = text_features(ask.text)
        prompt_tokens = ask.prompt_tokens or self._estimate(ask)
        size = _size(ask, text[PIECES])
        key = ask.key
        history, anchor = self.history.features_one(key, size)
        vector = np.empty(N_FEATURES, np.float32)
        vector[: ANCHOR + 1] = (*_request_features(ask, prompt_tokens), size, *text, *history, anchor)
        vector[SYSTEM_EMBEDDING] = self._system_embedding(key.template, ask.system)
        vector[TEXT_EMBEDDING] = embedding
        return vector

    def _estimate(self, ask: PredictionInput) -> int | None:
        return self.prompt_tokens.estimate(ask.app, ask.model, ask.text_bytes) if ask.text_bytes else None

    def _system_embedding(self, template: str | None, system: str | None) -> Vector:
        cached = self._systems.get(template)
        if cached is None:
            cached = self._systems[template] = self.embedder.embed([system or ""])[0]
            if len(self._systems) > _MAX_SYSTEMS:
                self._systems.popitem(last=False)
        self._systems.move_to_end(template)
        return cached


def vector_to_bytes(vector: Vector) -> bytes:
    """Return the little-endian float32 bytes of a vector (n_features,), for a database's column."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def vector_from_bytes(stored: bytes) -> Vector:
    """Read a vector (n_features,) back.

    Raises:
        ValueError: it is not as long as a vector of this version.
    """
    if len(stored) != 4 * N_FEATURES:
        raise ValueError(f"{len(stored)} bytes stored; a vector of version {FEATURE_VERSION} has {4 * N_FEATURES}")
    return np.frombuffer(stored, "<f4").astype(np.float32, copy=False)


def _size(ask: PredictionInput, pieces: float) -> float:
    """Return the log size that history regresses on: pieces of the whole last message, else estimated tokens."""
    if not isnan(pieces):
        left_out = ask.last_user_bytes / max(1, utf8_bytes(ask.text))
        return pieces if left_out <= 1.0 else log1p(expm1(pieces) * left_out)
    tokens = ask.prompt_tokens or ask.text_bytes / PRIOR_BYTES_PER_TOKEN
    return log1p(tokens) if tokens else nan


def _request_features(ask: PredictionInput, prompt_tokens: int | None) -> tuple[float, ...]:
    """Return the values of `REQUEST_FEATURES` but for the last."""
    known_size = ask.text_bytes and prompt_tokens
    return (
        log1p(ask.text_bytes) if ask.text_bytes else nan,
        log1p(ask.last_user_bytes) if ask.text_bytes else nan,
        log1p(prompt_tokens) if prompt_tokens else nan,
        log1p(ask.text_bytes / prompt_tokens) if known_size and prompt_tokens else nan,
        log1p(len(ask.system)) if ask.system else 0.0,
        log1p(ask.message_count),
        nan if ask.max_tokens is None else log1p(ask.max_tokens),
        nan if ask.temperature is None else ask.temperature,
        log1p(ask.sequences),
        log1p(ask.stop_count),
        log1p(ask.tools_bytes),
        log1p(ask.schema_bytes),
        float(ask.json_mode),
        nan if ask.reasoning_effort is None else _EFFORTS.get(ask.reasoning_effort, nan),
    )
