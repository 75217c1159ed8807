"""What serves before the first training: the history's own expectation, spread as its past errors were."""

from math import isnan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.features import ANCHOR, FEATURE_NAMES, Vector
from gateway.prediction.history import PRIOR_SIGMA
from gateway.prediction.history_features import LEVEL_NAMES
from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]

_SCORES: Floats = np.array([NormalDist().inv_cdf(level) for level in LEVELS])
_ERRORS = [FEATURE_NAMES.index(f"{level}_error") for level in LEVEL_NAMES]
_MIN_SIGMA = 0.02


class AnchorModel:
    """A lognormal distribution around the anchor; it has nothing to fit."""

    def predict(self, X: Vector) -> Floats:
        """Return log tokens (n, n_levels) at `LEVELS` for vectors (n, N_FEATURES)."""
        sigma = np.full(len(X), PRIOR_SIGMA)
        for column in _ERRORS:
            sigma = np.where(np.isnan(X[:, column]), sigma, X[:, column])
        return np.asarray(X[:, ANCHOR, None] + np.maximum(sigma, _MIN_SIGMA)[:, None] * _SCORES)

    def predict_one(self, vector: Vector) -> Floats:
        """Return log tokens (n_levels,) for one vector (N_FEATURES,)."""
        known = [error for error in vector[_ERRORS].tolist() if not isnan(error)]
        sigma = max(_MIN_SIGMA, known[-1]) if known else PRIOR_SIGMA
        return np.asarray(float(vector[ANCHOR]) + sigma * _SCORES)
