"""The trained length model as it serves: quantiles of log answer tokens from boosted oblivious trees.

The target is log tokens less the anchor from history, so the trees learn corrections that also hold for applications
that were not in the training. One model gives all levels; the mean and the probability of a cut at `max_tokens` are
computed from the same distribution. `gateway.prediction.fitting` fits the trees with CatBoost.

In an oblivious tree all nodes of a level have the same test, so the number of a leaf is the bits of the results. The
prediction of an ensemble is one comparison, a packing of bits, a gather and a sum, whatever the number of trees. For
one row it takes a tenth of the time of CatBoost's own call, and the serving process does not load CatBoost.

Source: Prokhorenkova et al., CatBoost (arXiv 1706.09516), sec. 2: oblivious decision tables.
"""

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.features import (
    ANCHOR,
    FEATURE_NAMES,
    FEATURE_VERSION,
    SYSTEM_EMBEDDING,
    TEXT_EMBEDDING,
    Vector,
)

if TYPE_CHECKING:  # CatBoost takes 50 MiB of memory
    from catboost import CatBoost

Floats = NDArray[np.float64]

SYSTEM_DIMS = 4
"""Principal components of the system prompt's embedding."""

MAX_DEPTH = 8
"""Depth of a tree at most, because the number of a leaf is packed into one byte."""

ROWS_AT_ONCE = 64
"""Rows that are predicted together, to bound the scratch memory."""

_NEVER = np.float32(np.inf)
"""Border of a level that a shallower tree does not have: no input is above it."""


@dataclass(frozen=True, slots=True, eq=False)
class ObliviousTrees:
    """Boosted oblivious trees; a missing input (NaN) counts as below every border.

    Attributes:
        features: (n_trees, depth), the input that a level tests.
        borders: (n_trees, depth), the border that the input is compared with.
        leaves: (n_trees, 2**depth, n_outputs), the value of each leaf.
        bias: (n_outputs,), added to the sum of the leaves.
    """

    features: NDArray[np.intp]
    borders: Vector
    leaves: Floats
    bias: Floats

    @classmethod
    def of(cls, booster: "CatBoost") -> "ObliviousTrees":
        """Read the trees of a fitted CatBoost model with several outputs.

        Raises:
            ValueError: a tree is deeper than `MAX_DEPTH`.
        """
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "booster.json"
            booster.save_model(str(path), format="json")
            model: dict[str, Any] = json.loads(path.read_bytes())
        trees = model["oblivious_trees"]
        scale, bias = model["scale_and_bias"]
        depth = max((len(tree["splits"] or ()) for tree in trees), default=0)
        if depth > MAX_DEPTH:
            raise ValueError(f"a tree is {depth} levels deep; at most {MAX_DEPTH} are possible")
        features = np.zeros((len(trees), depth), np.intp)
        borders = np.full((len(trees), depth), _NEVER)
        leaves = np.zeros((len(trees), 2**depth, len(bias)))
        for i, tree in enumerate(trees):
            for level, split in enumerate(tree["splits"] or ()):
                features[i, level], borders[i, level] = split["float_feature_index"], split["border"]
            values = scale * np.array(tree["leaf_values"]).reshape(-1, len(bias))
            leaves[i, : len(values)] = values
        return cls(features, borders, leaves, np.array(bias, float))

    @classmethod
    def from_arrays(cls, parts: Mapping[str, Any]) -> "ObliviousTrees":
        """Read back the result of `to_arrays`."""
        features, borders, leaves, bias = (parts[f"trees_{name}"] for name in ("features", "borders", "leaves", "bias"))
        return cls(features.astype(np.intp), borders, leaves, bias)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        return {
            "trees_features": self.features.astype(np.int32),
            "trees_borders": self.borders,
            "trees_leaves": self.leaves,
            "trees_bias": self.bias,
        }

    def predict(self, X: Vector) -> Floats:
        """Return (n, n_outputs) for rows (n, n_inputs)."""
        outputs = np.empty((len(X), len(self.bias)))
        for start in range(0, len(X), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            outputs[rows] = self._sums(X[rows])
        return outputs

    def predict_one(self, x: Vector) -> Floats:
        """Return (n_outputs,) for one row (n_inputs,)."""
        return np.asarray(self._sums(x[None])[0])

    def _sums(self, X: Vector) -> Floats:
        n_trees, n_leaves, n_outputs = self.leaves.shape
        above = X.take(self.features.ravel(), axis=1) > self.borders.ravel()
        bits = np.packbits(above.reshape(len(X), n_trees, -1), axis=2, bitorder="little")[..., 0]
        at = bits + np.arange(0, n_trees * n_leaves, n_leaves)
        return np.asarray(self.leaves.reshape(-1, n_outputs).take(at, axis=0).sum(axis=1) + self.bias)


@dataclass(frozen=True, slots=True)
class Compression:
    """A PCA: the mean (n_inputs,) and the first components (n_inputs, n_components)."""

    mean: Vector
    components: Vector

    @classmethod
    def fit(cls, vectors: Vector, n_components: int) -> "Compression":
        """Fit on (n, n_inputs) vectors."""
        mean = vectors.mean(axis=0)
        _, basis = np.linalg.eigh(np.cov((vectors - mean).T))
        return cls(mean, np.ascontiguousarray(basis[:, ::-1][:, :n_components], np.float32))

    def __call__(self, vectors: Vector) -> Vector:
        """Compress (..., n_inputs) to (..., n_components)."""
        return np.asarray((vectors - self.mean) @ self.components)


class LengthModel:
    """Quantiles of log answer tokens at `LEVELS`, from feature vectors.

    Args:
        iterations: trees at most; the training may use fewer.
        depth: of each tree.
        learning_rate: shrinkage of each tree; None lets the training choose it by the number of trees.
        text_dims: principal components of the text's embedding.
        dropout: share of training rows whose history is hidden, as for a new application.
        thread_count: threads of the training.
        random_state: seed.

    Attributes:
        booster_: the CatBoost model; only on a model that was fitted in this process.
        trees_: the trees that predict.
        importances_: (n_inputs,) importance of the inputs, in percent.
        system_compression_: of the system prompt's embedding.
        text_compression_: of the text's embedding.
    """

    booster_: "CatBoost"
    trees_: ObliviousTrees
    importances_: Floats
    system_compression_: Compression
    text_compression_: Compression

    def __init__(
        self,
        *,
        iterations: int = 1000,
        depth: int = 6,
        learning_rate: float | None = None,
        text_dims: int = 16,
        dropout: float = 0.1,
        thread_count: int = 1,
        random_state: int = 0,
    ) -> None:
        self.iterations = iterations
        self.depth = depth
        self.learning_rate = learning_rate
        self.text_dims = text_dims
        self.dropout = dropout
        self.thread_count = thread_count
        self.random_state = random_state

    def predict(self, X: Vector) -> Floats:
        """Return log tokens (n, n_levels) at `LEVELS`, not decreasing along a row."""
        return np.sort(self.trees_.predict(self.inputs(X)) + X[:, ANCHOR, None], axis=1)

    def predict_one(self, vector: Vector) -> Floats:
        """Return log tokens (n_levels,) for one vector (N_FEATURES,)."""
        return np.sort(self.trees_.predict_one(self.inputs(vector)) + vector[ANCHOR])

    def inputs(self, X: Vector) -> Vector:
        """Return the inputs of the trees (..., n_inputs) for vectors (..., N_FEATURES)."""
        system = self.system_compression_(X[..., SYSTEM_EMBEDDING])
        text = self.text_compression_(X[..., TEXT_EMBEDDING])
        return np.concatenate([X[..., : ANCHOR + 1], system, text], axis=-1)

    def feature_importances(self) -> dict[str, float]:
        """Return the importance of each input in percent, the greatest first."""
        system = [f"system_component_{i}" for i in range(SYSTEM_DIMS)]
        text = [f"text_component_{i}" for i in range(self.text_dims)]
        shares = zip([*FEATURE_NAMES[: ANCHOR + 1], *system, *text], self.importances_, strict=True)
        return dict(sorted(((name, float(share)) for name, share in shares), key=lambda item: -item[1]))

    def get_params(self) -> dict[str, Any]:
        """Return the hyper-parameters."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_")}

    def to_bytes(self) -> bytes:
        """Return the fitted model as bytes that contain no code."""
        header = {"feature_version": FEATURE_VERSION, "parameters": self.get_params()}
        file = io.BytesIO()
        arrays: dict[str, Any] = {
            "header": np.frombuffer(json.dumps(header).encode(), np.uint8),
            "system_mean": self.system_compression_.mean,
            "system_components": self.system_compression_.components,
            "text_mean": self.text_compression_.mean,
            "text_components": self.text_compression_.components,
            "importances": self.importances_,
            **self.trees_.to_arrays(),
        }
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "LengthModel":
        """Read a fitted model back.

        Raises:
            ValueError: the bytes are no model, or its feature version differs.
        """
        with np.load(io.BytesIO(stored), allow_pickle=False) as parts:
            header = json.loads(parts["header"].tobytes())
            if header["feature_version"] != FEATURE_VERSION:
                raise ValueError(f"the model has feature version {header['feature_version']}, not {FEATURE_VERSION}")
            model = cls(**header["parameters"])
            model.system_compression_ = Compression(parts["system_mean"], parts["system_components"])
            model.text_compression_ = Compression(parts["text_mean"], parts["text_components"])
            model.trees_, model.importances_ = ObliviousTrees.from_arrays(parts), parts["importances"]
        return model
