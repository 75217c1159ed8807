"""The trained model: quantiles of an answer's log length, from CatBoost on what history does not already explain.

The target is log tokens less the history's anchor, so the trees learn corrections that hold for applications which they
have never seen. One MultiQuantile model gives all levels. The mean and the share cut at `max_tokens` are read off the
same distribution: separate models for them measured no better. CatBoost fits; what serves are its trees alone.

Source: Prokhorenkova et al., CatBoost (arXiv 1706.09516); Koenker & Bassett, Regression quantiles (1978).
"""

import io
import json
from dataclasses import dataclass
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
from gateway.prediction.history_features import LEVEL_NAMES, PRIOR_EXPECTED
from gateway.prediction.oblivious_trees import ObliviousTrees
from gateway.scheduling.length import LEVELS

if TYPE_CHECKING:  # it takes 50 MiB, and a process that only predicts does without
    from catboost import Pool

Floats = NDArray[np.float64]

WORK = 25_000_000
"""Rows x trees of one training at most: about 50 s on one core. Few rows get more trees than many."""

MIN_TREES = 200
LEARNING = 50.0
"""Trees x learning rate: what a training needs in all."""

MAX_LEARNING_RATE = 0.2
FEATURES_PER_TREE = 0.2
"""Share of the features that each tree may split on: a third of the time of all, and no worse."""

BORDERS = 64
"""Split candidates per feature."""

SYSTEM_DIMS = 4
"""Principal components kept of the system prompt's embedding."""


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
    """Quantiles of log answer tokens at `LEVELS`, from vectors of features.

    Args:
        iterations: trees at most; fewer where `WORK` or the validation rows say so.
        depth: of each tree.
        learning_rate: shrinkage of each tree; None: the larger, the fewer trees there are.
        text_dims: principal components kept of the text's embedding.
        dropout: share of training rows whose history is hidden as if their application were new.
        thread_count: of the training.
        random_state: seed.

    Attributes:
        booster_: the CatBoost model, where it was fitted and not read back.
        trees_: what predicts.
        importances_: (n_inputs,) of the booster's inputs, in percent.
        system_compression_: of the system prompt's embedding.
        text_compression_: of the text's embedding.
    """

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

    def fit(self, X: Vector, tokens: Floats, *, validation: tuple[Vector, Floats] | None = None) -> "LengthModel":
        """Fit on answers of known lengths.

        Args:
            X: (n, N_FEATURES), each as of before its answer.
            tokens: (n,) tokens of the answers, per sequence.
            validation: rows held out, by which the number of trees is chosen.
        """
        from catboost import CatBoostRegressor

        hidden = hide_history(X, self.dropout, np.random.default_rng(self.random_state))
        self.system_compression_ = Compression.fit(X[:, SYSTEM_EMBEDDING], SYSTEM_DIMS)
        self.text_compression_ = Compression.fit(X[:, TEXT_EMBEDDING], self.text_dims)
        held_out = None if validation is None else self._pool(*validation)
        self.booster_ = CatBoostRegressor(**self._parameters(len(X)))
        self.booster_.fit(self._pool(hidden, tokens), eval_set=held_out)
        self.trees_ = ObliviousTrees.of(self.booster_)
        self.importances_ = np.asarray(self.booster_.get_feature_importance())
        return self

    def predict(self, X: Vector) -> Floats:
        """Return log tokens (n, n_levels) at `LEVELS`, not decreasing along a row."""
        return np.sort(self.trees_.predict(self._inputs(X)) + X[:, ANCHOR, None], axis=1)

    def predict_one(self, vector: Vector) -> Floats:
        """Return log tokens (n_levels,) for one vector (N_FEATURES,)."""
        return np.sort(self.trees_.predict_one(self._inputs(vector)) + vector[ANCHOR])

    def feature_importances(self) -> dict[str, float]:
        """Return each input's share of the importance, in percent, the greatest first."""
        shares = zip(self.input_names(), self.importances_, strict=True)
        return dict(sorted(((name, float(share)) for name, share in shares), key=lambda item: -item[1]))

    def input_names(self) -> list[str]:
        """Return the names of the booster's inputs: the features, the embeddings' components in place of themselves."""
        system = [f"system_component_{i}" for i in range(SYSTEM_DIMS)]
        text = [f"text_component_{i}" for i in range(self.text_dims)]
        return [*FEATURE_NAMES[: ANCHOR + 1], *system, *text]

    def to_bytes(self) -> bytes:
        """Return the fitted model as bytes, that hold no code."""
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
            ValueError: no model, or one of another feature version.
        """
        with np.load(io.BytesIO(stored), allow_pickle=False) as parts:
            header = json.loads(parts["header"].tobytes())
            if header["feature_version"] != FEATURE_VERSION:
                raise ValueError(f"The model has feature version {header['feature_version']}, not {FEATURE_VERSION}")
            model = cls(**header["parameters"])
            model.system_compression_ = Compression(parts["system_mean"], parts["system_components"])
            model.text_compression_ = Compression(parts["text_mean"], parts["text_components"])
            model._read_trees(parts)
        return model

    def get_params(self) -> dict[str, Any]:
        """Return the hyper-parameters."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_")}

    def _read_trees(self, parts: Any) -> None:  # noqa: ANN401 - numpy's archive
        if "booster" not in parts:
            self.trees_, self.importances_ = ObliviousTrees.from_arrays(parts), parts["importances"]
            return
        from catboost import CatBoostRegressor  # a model of before the trees were stored by themselves

        booster = CatBoostRegressor().load_model(blob=parts["booster"].tobytes())
        self.trees_, self.importances_ = ObliviousTrees.of(booster), np.asarray(booster.get_feature_importance())

    def _parameters(self, n_rows: int) -> dict[str, Any]:
        trees = min(self.iterations, max(MIN_TREES, WORK // max(1, n_rows)))
        return {
            "loss_function": f"MultiQuantile:alpha={','.join(map(str, LEVELS))}",
            "iterations": trees,
            "depth": self.depth,
            "learning_rate": min(MAX_LEARNING_RATE, LEARNING / trees)
            if self.learning_rate is None
            else self.learning_rate,
            "rsm": FEATURES_PER_TREE,
            "border_count": BORDERS,
            "thread_count": self.thread_count,
            "random_seed": self.random_state,
            "allow_writing_files": False,
            "verbose": False,
        }

    def _pool(self, X: Vector, tokens: Floats) -> "Pool":
        from catboost import Pool

        return Pool(self._inputs(X), np.log(np.maximum(tokens, 1.0)) - X[:, ANCHOR])

    def _inputs(self, X: Vector) -> Vector:
        system = self.system_compression_(X[..., SYSTEM_EMBEDDING])
        text = self.text_compression_(X[..., TEXT_EMBEDDING])
        return np.concatenate([X[..., : ANCHOR + 1], system, text], axis=-1)


def hide_history(X: Vector, share: float, rng: np.random.Generator) -> Vector:
    """Return a copy of (n, N_FEATURES) in which a share of the rows comes from an application never seen before.

    Two thirds of these still know their model; the rest know only what holds for all requests. The anchor is what
    the levels that are left expect.
    """
    X = X.copy()
    drawn = rng.random(len(X))
    for levels, rows in ((LEVEL_NAMES[2:], drawn < share), (LEVEL_NAMES[1:], drawn < share / 3)):
        for level in levels:
            start = FEATURE_NAMES.index(f"{level}_count")
            X[rows, start] = 0.0
            X[rows, start + 1 : FEATURE_NAMES.index(f"{level}_expected") + 1] = np.nan
        above = X[rows, FEATURE_NAMES.index(f"{LEVEL_NAMES[LEVEL_NAMES.index(levels[0]) - 1]}_expected")]
        X[rows, ANCHOR] = np.where(np.isnan(above), PRIOR_EXPECTED, above)
    return X
