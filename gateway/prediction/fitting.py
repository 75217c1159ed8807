"""From past requests to a predictor fit to serve: the model on most of them, its calibration on the rest."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.calibration import Calibration
from gateway.prediction.features import Vector
from gateway.prediction.length_model import LengthModel

Floats = NDArray[np.float64]

CALIBRATION_SHARE = 0.1
MIN_ROWS = 200
"""Answers under which a training is not worth its while."""


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Past requests as they are stored: no text.

    `X` (n, N_FEATURES), each as of before its answer; `tokens` (n,) per sequence; `apps` (n,). Rows of the same
    `groups` (n,) stay together when some are held out; without groups the newest are, so the rows come in time order.
    """

    X: Vector
    tokens: Floats
    apps: Sequence[str]
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def held_out(self, share: float) -> NDArray[np.bool_]:
        """Return (n,) which rows are held out, about `share` of them."""
        if self.groups is None:
            return np.arange(len(self)) >= round(len(self) * (1.0 - share))
        return np.array([crc32(group.encode()) % 1000 < 1000 * share for group in self.groups])


@dataclass(frozen=True, slots=True)
class FittedPredictor:
    """What a training makes and a registry stores: the model, and its calibration as of the end of the training."""

    model: LengthModel
    calibration: Calibration

    def to_bytes(self) -> bytes:
        """Return both as bytes, that hold no code."""
        calibration = json.dumps(self.calibration.to_dict()).encode()
        return len(calibration).to_bytes(8, "little") + calibration + self.model.to_bytes()

    @classmethod
    def from_bytes(cls, stored: bytes) -> "FittedPredictor":
        """Read both back.

        Raises:
            ValueError: the bytes are no predictor, or one of another feature version.
        """
        size = int.from_bytes(stored[:8], "little")
        calibration = Calibration.from_dict(json.loads(stored[8 : 8 + size]))
        return cls(LengthModel.from_bytes(stored[8 + size :]), calibration)


def fit_predictor(training: TrainingSet, model: LengthModel | None = None) -> FittedPredictor:
    """Fit a model and calibrate it on rows that it has not seen; they also choose its number of trees.

    Raises:
        ValueError: fewer than `MIN_ROWS` rows.
    """
    if len(training) < MIN_ROWS:
        raise ValueError(f"{len(training)} rows to train on; at least {MIN_ROWS} are needed")
    held_out = training.held_out(CALIBRATION_SHARE)
    X, tokens = training.X[held_out], training.tokens[held_out]
    model = LengthModel() if model is None else model
    model.fit(training.X[~held_out], training.tokens[~held_out], validation=(X, tokens))
    apps = [app for app, out in zip(training.apps, held_out, strict=True) if out]
    return FittedPredictor(model, Calibration().fit(apps, model.predict(X), tokens))
