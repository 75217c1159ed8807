"""A boosted ensemble of oblivious trees, as arrays: what is left of a CatBoost model once it is fitted.

In an oblivious tree all nodes of a level ask the same, so a leaf's number is the answers' bits, and an ensemble's
prediction is a comparison, a packing of bits, a gather and a sum, whatever the number of trees. For one row that is a
tenth of what CatBoost's own call costs, and the process that serves need not load CatBoost.

Source: Prokhorenkova et al., CatBoost (arXiv 1706.09516), sec. 2: oblivious decision tables.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from catboost import CatBoost

Floats = NDArray[np.float64]
Inputs = NDArray[np.float32]

MAX_DEPTH = 8
"""A leaf's number is packed into one byte."""

ROWS_AT_ONCE = 64
"""Bounds the scratch memory of a large prediction."""

_NEVER = np.float32(np.inf)
"""The border of a level that a shallower tree does not have: nothing is beyond it."""


@dataclass(frozen=True, slots=True, eq=False)
class ObliviousTrees:
    """Trees over inputs of which NaN counts as less than all else.

    `features` and `borders` (n_trees, depth): a level asks whether the input is beyond the border. `leaves`
    (n_trees, 2**depth, n_outputs): what each leaf adds to `bias` (n_outputs,).
    """

    features: NDArray[np.intp]
    borders: Inputs
    leaves: Floats
    bias: Floats

    @classmethod
    def of(cls, booster: "CatBoost") -> "ObliviousTrees":
        """Read the trees of a fitted CatBoost model of several outputs.

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
            raise ValueError(f"a tree is {depth} levels deep; {MAX_DEPTH} are the most")
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
        """Read back what `to_arrays` returned."""
        features, borders, leaves, bias = (parts[f"trees_{name}"] for name in ("features", "borders", "leaves", "bias"))
        return cls(features.astype(np.intp), borders, leaves, bias)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything by name."""
        return {
            "trees_features": self.features.astype(np.int32),
            "trees_borders": self.borders,
            "trees_leaves": self.leaves,
            "trees_bias": self.bias,
        }

    def predict(self, X: Inputs) -> Floats:
        """Return (n, n_outputs) for rows (n, n_inputs)."""
        outputs = np.empty((len(X), len(self.bias)))
        for start in range(0, len(X), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            outputs[rows] = self._sums(X[rows])
        return outputs

    def predict_one(self, x: Inputs) -> Floats:
        """Return (n_outputs,) for one row (n_inputs,)."""
        return np.asarray(self._sums(x[None])[0])

    def _sums(self, X: Inputs) -> Floats:
        n_trees, n_leaves, n_outputs = self.leaves.shape
        beyond = X.take(self.features.ravel(), axis=1) > self.borders.ravel()
        bits = np.packbits(beyond.reshape(len(X), n_trees, -1), axis=2, bitorder="little")[..., 0]
        at = bits + np.arange(0, n_trees * n_leaves, n_leaves)
        return np.asarray(self.leaves.reshape(-1, n_outputs).take(at, axis=0).sum(axis=1) + self.bias)
