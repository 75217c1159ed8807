"""Training: a model fitted with CatBoost to most of the past requests, and its calibration on the rest.

Source: Prokhorenkova et al., CatBoost (arXiv 1706.09516); Koenker & Bassett, Regression quantiles (1978).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.answer_memory import LEVEL_NAMES, PRIOR_EXPECTED
from gateway.prediction.calibration import Calibration
from gateway.prediction.features import ANCHOR, FEATURE_NAMES, SYSTEM_EMBEDDING, TEXT_EMBEDDING, Vector
from gateway.prediction.length_model import SYSTEM_DIMS, Compression, LengthModel, ObliviousTrees
from gateway.scheduling.length import LEVELS

if TYPE_CHECKING:  # CatBoost takes 50 MiB of memory, and a process that only predicts does not need it
    from catboost import Pool

Floats = NDArray[np.float64]

CALIBRATION_SHARE = 0.1
MIN_ROWS = 200
"""Rows that a training needs at least."""

WORK = 25_000_000
"""Rows x trees of one training at most: about 50 s on one core. Few rows get more trees than many rows."""

MIN_TREES = 200
LEARNING = 50.0
"""Trees x learning rate, unless the model sets its own learning rate."""

MAX_LEARNING_RATE = 0.2
FEATURES_PER_TREE = 0.2
"""Share of the features that each tree may use: a third of the time, and no worse."""

BORDERS = 64
"""Split candidates per feature."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Past requests as they are stored, without texts.

    Attributes:
        X: (n, N_FEATURES), each vector from before its answer.
        tokens: (n,) tokens of the answers, per sequence.
        apps: (n,) applications.
        groups: (n,); rows of one group are held out together. None: the newest rows are held out, so the rows must be
            in time order.
    """

    X: Vector
    tokens: Floats
    apps: Sequence[str]
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def held_out(self, share: float) -> NDArray[np.bool_]:
        """Return a mask (n,) of the rows to hold out, about `share` of them."""
        if self.groups is None:
            return np.arange(len(self)) >= round(len(self) * (1.0 - share))
        return np.array([crc32(group.encode()) % 1000 < 1000 * share for group in self.groups])


@dataclass(frozen=True, slots=True)
class FittedPredictor:
    """The result of a training, as the registry stores it: the model and its initial calibration."""

    model: LengthModel
    calibration: Calibration

    def to_bytes(self) -> bytes:
        """Return both as bytes that contain no code."""
        calibration = json.dumps(self.calibration.to_dict()).encode()
        return len(calibration).to_bytes(8, "little") + calibration + self.model.to_bytes()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "FittedPredictor":
        """Read both back.

        Raises:
            ValueError: the bytes are no predictor, or its feature version differs.
        """
        size = int.from_bytes(stored[:8], "little")
        calibration = Calibration.from_dict(json.loads(stored[8 : 8 + size]))
        return cls(LengthModel.from_bytes(stored[8 + size :]), calibration)


def fit_predictor(training: TrainingSet, model: LengthModel | None = None) -> FittedPredictor:
    """Fit a model, and calibrate it on held-out rows, which also choose the number of trees.

    Raises:
        ValueError: fewer than `MIN_ROWS` rows.
    """
    if len(training) < MIN_ROWS:
        raise ValueError(f"{len(training)} rows to train on; at least {MIN_ROWS} are needed")
    held_out = training.held_out(CALIBRATION_SHARE)
    X, tokens = training.X[held_out], training.tokens[held_out]
    model = LengthModel() if model is None else model
    fit_model(model, training.X[~held_out], training.tokens[~held_out], validation=(X, tokens))
    apps = [app for app, out in zip(training.apps, held_out, strict=True) if out]
    return FittedPredictor(model, Calibration().fit(apps, model.predict(X), tokens))


def fit_model(model: LengthModel, X: Vector, tokens: Floats, *, validation: tuple[Vector, Floats]) -> None:
    """Fit a model to answers of known lengths.

    Args:
        model: gets its fitted attributes.
        X: (n, N_FEATURES), each vector from before its answer.
        tokens: (n,) tokens of the answers, per sequence.
        validation: held-out rows, which choose the number of trees.
    """
    from catboost import CatBoostRegressor

    hidden = hide_history(X, model.dropout, np.random.default_rng(model.random_state))
    model.system_compression_ = Compression.fit(X[:, SYSTEM_EMBEDDING], SYSTEM_DIMS)
    model.text_compression_ = Compression.fit(X[:, TEXT_EMBEDDING], model.text_dims)
    booster = CatBoostRegressor(**_parameters(model, len(X)))
    booster.fit(_pool(model, hidden, tokens), eval_set=_pool(model, *validation))
    model.booster_ = booster
    model.trees_ = ObliviousTrees.of(booster)
    model.importances_ = np.asarray(booster.get_feature_importance())


def hide_history(X: Vector, share: float, rng: np.random.Generator) -> Vector:
    """Return a copy of (n, N_FEATURES) in which a share of the rows comes from a new application.

    Two thirds of these rows keep the history of their model; the others keep only that of all requests. Their anchor
    is what the remaining levels expect.
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


def _parameters(model: LengthModel, n_rows: int) -> dict[str, Any]:
    trees = min(model.iterations, max(MIN_TREES, WORK // max(1, n_rows)))
    rate = min(MAX_LEARNING_RATE, LEARNING / trees) if model.learning_rate is None else model.learning_rate
    return {
        "loss_function": f"MultiQuantile:alpha={','.join(map(str, LEVELS))}",
        "iterations": trees,
        "depth": model.depth,
        "learning_rate": rate,
        "rsm": FEATURES_PER_TREE,
        "border_count": BORDERS,
        "thread_count": model.thread_count,
        "random_seed": model.random_state,
        "allow_writing_files": False,
        "verbose": False,
    }


def _pool(model: LengthModel, X: Vector, tokens: Floats) -> "Pool":
    from catboost import Pool

    return Pool(model.inputs(X), np.log(np.maximum(tokens, 1.0)) - X[:, ANCHOR])
