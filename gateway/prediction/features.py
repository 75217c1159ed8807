"""The features of a request, made here both for training and for serving.

A vector holds everything that a training needs of a request, so no prompt has to be stored: the fields of the request,
the cues of its text, the history *before* it, and the embeddings of its system prompt and its text. It is stored as
bytes. `FEATURE_VERSION` rises with any change of a feature's meaning or place.
"""

from collections.abc import Sequence
from math import expm1, isnan, log1p, nan

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from gateway.prediction.answer_memory import HISTORY_FEATURES, PRIOR_BYTES_PER_TOKEN, AnswerMemory
from gateway.prediction.embedder import EMBEDDING_DIMS, Embedder
from gateway.prediction.prediction_input import PredictionInput, utf8_bytes
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
"""Features from the request's fields; sizes and counts as log1p. History regresses answer tokens on `size`."""

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
SIZE = FEATURE_NAMES.index("size")
ANCHOR = FEATURE_NAMES.index("anchor")
SYSTEM_EMBEDDING = slice(ANCHOR + 1, ANCHOR + 1 + EMBEDDING_DIMS)
TEXT_EMBEDDING = slice(SYSTEM_EMBEDDING.stop, N_FEATURES)

_EFFORTS = {"none": 0.0, "minimal": 1.0, "low": 2.0, "medium": 3.0, "high": 4.0, "xhigh": 5.0}

MAX_SYSTEMS = 1024
"""System prompts whose embeddings are kept."""


class FeatureExtractor:
    """Makes the vectors of requests from their texts and from the memory of past answers.

    Args:
        embedder: makes embeddings of texts, or zeros if embeddings are off.
        memory: the past answers; the extractor only reads it.
    """

    def __init__(self, embedder: Embedder, memory: AnswerMemory) -> None:
        self.embedder = embedder
        self.memory = memory
        self._systems: LRUCache[str | None, Vector] = LRUCache(MAX_SYSTEMS)

    @property
    def version(self) -> str:
        """Version of the vectors; vectors of different versions must not be mixed."""
        return features_version(self.embedder)

    def extract_one(self, prediction_input: PredictionInput) -> Vector:
        """Return the features (n_features,) of a request, from the answers before it."""
        return self._vector(prediction_input, self.embedder.embed([prediction_input.text])[0])

    def extract(self, inputs: Sequence[PredictionInput]) -> Vector:
        """Return the features (n, n_features) of requests that are predicted together."""
        embeddings = self.embedder.embed([one.text for one in inputs])
        rows = [self._vector(one, embedding) for one, embedding in zip(inputs, embeddings, strict=True)]
        return np.stack(rows) if rows else np.empty((0, N_FEATURES), np.float32)

    def _vector(self, one: PredictionInput, embedding: Vector) -> Vector:
        text = text_features(one.text)
        prompt_tokens = one.prompt_tokens or (
            self.memory.prompt_tokens(one.key, one.text_bytes) if one.text_bytes else None
        )
        size = _size(one, text[PIECES])
        history, anchor = self.memory.features_one(one.key, size)
        vector = np.empty(N_FEATURES, np.float32)
        vector[: ANCHOR + 1] = (*_request_features(one, prompt_tokens), size, *text, *history, anchor)
        vector[SYSTEM_EMBEDDING] = self._system_embedding(one.key.template, one.system)
        vector[TEXT_EMBEDDING] = embedding
        return vector

    def _system_embedding(self, template: str | None, system: str | None) -> Vector:
        cached = self._systems.get(template)
        if cached is None:
            cached = self._systems[template] = self.embedder.embed([system or ""])[0]
        return cached


def features_version(embedder: Embedder) -> str:
    """Return the version of the vectors that are made with an embedder."""
    return f"{FEATURE_VERSION}:{embedder.name}"


def vector_to_bytes(vector: Vector) -> bytes:
    """Return the little-endian float32 bytes of a vector (n_features,), for a database column."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def vector_from_bytes(stored: bytes) -> Vector:
    """Read a vector (n_features,) back.

    Raises:
        ValueError: the length is not that of a vector of this version.
    """
    if len(stored) != 4 * N_FEATURES:
        raise ValueError(f"{len(stored)} bytes stored; a vector of version {FEATURE_VERSION} has {4 * N_FEATURES}")
    return np.frombuffer(stored, "<f4").astype(np.float32, copy=False)


def _size(one: PredictionInput, pieces: float) -> float:
    """Return the log size that history regresses on: pieces of the whole last message, else estimated tokens."""
    if not isnan(pieces):
        scale = one.last_user_bytes / max(1, utf8_bytes(one.text))
        return pieces if scale <= 1.0 else log1p(expm1(pieces) * scale)
    tokens = one.prompt_tokens or one.text_bytes / PRIOR_BYTES_PER_TOKEN
    return log1p(tokens) if tokens else nan


def _request_features(one: PredictionInput, prompt_tokens: int | None) -> tuple[float, ...]:
    """Return the values of `REQUEST_FEATURES` except the last."""
    has_text = one.text_bytes > 0
    return (
        log1p(one.text_bytes) if has_text else nan,
        log1p(one.last_user_bytes) if has_text else nan,
        log1p(prompt_tokens) if prompt_tokens else nan,
        log1p(one.text_bytes / prompt_tokens) if has_text and prompt_tokens else nan,
        log1p(len(one.system)) if one.system else 0.0,
        log1p(one.message_count),
        nan if one.max_tokens is None else log1p(one.max_tokens),
        nan if one.temperature is None else one.temperature,
        log1p(one.sequences),
        log1p(one.stop_count),
        log1p(one.tools_bytes),
        log1p(one.schema_bytes),
        float(one.json_mode),
        nan if one.reasoning_effort is None else _EFFORTS.get(one.reasoning_effort, nan),
    )
