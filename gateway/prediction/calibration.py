"""Online conformal calibration: per application, the shift of each predicted quantile that makes its coverage right.

Each level follows its own pinball gradient, so the coverage becomes right whatever error the model has, with steps that
are small enough to average noise. If the answers of an application keep falling on one side of their median, all its
levels move together and fast. That is drift, and the small steps would need thousands of answers for it.

Source: Gibbs & Candès, Adaptive conformal inference under distribution shift (2021); Angelopoulos, Candès & Tibshirani,
Conformal PID control for time series (2023), eq. 2: quantile tracking; Romano, Patterson & Candès, Conformalized
quantile regression (2019), for the offsets after a training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]

MAX_OFFSET = 3.0
"""Largest offset, in log tokens: a factor of 20."""

PRIOR_SCALE = 0.5
"""Distance of answers from their quantiles before the first answer, in log tokens."""

SHRINKAGE = 50.0
"""Rows at which an application's own offsets after a training weigh as much as those of all applications."""

EARLY = 5.0
"""Each of an application's first answers moves its offsets by up to `EARLY / SHRINKAGE` typical errors."""

MAX_APPS = 10_000
"""Applications with offsets of their own; the least recently used is dropped first."""

_LEVELS: Floats = np.array(LEVELS)
_MEDIAN = LEVELS.index(0.5)


@dataclass(slots=True)
class _Tracker:
    """The offsets of one application, and the values that their steps depend on.

    Attributes:
        n: answers learned, with a weight for those of the training.
        offsets: (n_levels,), added to the predicted log tokens.
        scale: (n_levels,) typical distance of answers from each quantile, in log tokens.
        drift: -1 to 1, the side of the median on which recent answers fall.
    """

    n: float
    offsets: Floats
    scale: Floats
    drift: float = 0.0


class Calibration:
    """Offsets of log quantiles per application; a new application starts with the offsets of all applications.

    Args:
        rate: step of each level, in typical errors.
        drift_rate: step of all levels together under full drift.
        drift_memory: weight of the newest answer in the drift signal.
        drift_threshold: drift signal (0 to 1) above which all levels move together; noise alone stays below it.

    Attributes:
        all_: offsets of all applications together.
        apps_: offsets by application.
    """

    def __init__(
        self, *, rate: float = 0.02, drift_rate: float = 0.5, drift_memory: float = 0.05, drift_threshold: float = 0.5
    ) -> None:
        self.rate = rate
        self.drift_rate = drift_rate
        self.drift_memory = drift_memory
        self.drift_threshold = drift_threshold
        self.all_ = _initial()
        self.apps_: LRUCache[str, _Tracker] = LRUCache(MAX_APPS)

    def fit(self, apps: Sequence[str], logs: Floats, tokens: Floats) -> "Calibration":
        """Fit the offsets on answers that the model was not fitted to.

        Args:
            apps: (n,) application of each answer.
            logs: (n, n_levels) predicted log tokens.
            tokens: (n,) tokens of the answers.
        """
        residuals = np.log(np.maximum(tokens, 1.0))[:, None] - logs
        self.apps_.clear()
        self.all_ = _fitted(residuals, _initial())
        names = np.asarray(apps)
        for app in np.unique(names)[:MAX_APPS]:
            self.apps_[str(app)] = _fitted(residuals[names == app], self.all_)
        return self

    def adjust_one(self, app: str, logs: Floats) -> Floats:
        """Return calibrated log tokens (n_levels,), not decreasing."""
        adjusted: Floats = np.sort(logs + self.apps_.get(app, self.all_).offsets)
        return adjusted

    def learn_one(self, app: str, logs: Floats, tokens: float) -> None:
        """Learn from an answer.

        Args:
            app: the application.
            logs: (n_levels,) predicted log tokens before the adjustment.
            tokens: the answer's tokens, per sequence.
        """
        errors = np.log(max(1.0, tokens)) - logs
        self._learn(self._touch(app), errors)
        self._learn(self.all_, errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters and the state as JSON types."""
        return {
            "rate": self.rate,
            "drift_rate": self.drift_rate,
            "drift_memory": self.drift_memory,
            "drift_threshold": self.drift_threshold,
            "all": _tracker_to_dict(self.all_),
            "apps": {app: _tracker_to_dict(tracker) for app, tracker in self.apps_.items()},
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Calibration":
        """Read back the result of `to_dict`."""
        parameters = {name: value for name, value in stored.items() if name not in {"all", "apps"}}
        calibration = cls(**parameters)
        calibration.all_ = _tracker_from_dict(stored["all"])
        calibration.apps_.update((app, _tracker_from_dict(tracker)) for app, tracker in stored["apps"].items())
        return calibration

    def _learn(self, tracker: _Tracker, errors: Floats) -> None:
        above = errors > tracker.offsets
        side = 1.0 if above[_MEDIAN] else -1.0
        distance = np.minimum(np.abs(errors - tracker.offsets), MAX_OFFSET)
        tracker.n += 1.0
        tracker.drift += self.drift_memory * (side - tracker.drift)
        rate = max(self.rate, EARLY / (tracker.n + SHRINKAGE))
        excess = (side * tracker.drift - self.drift_threshold) / (1.0 - self.drift_threshold)
        if excess > 0.0:  # drift: all levels move together and keep their distances
            step = side * excess * self.drift_rate * min(tracker.scale[_MEDIAN], distance[_MEDIAN])
            tracker.offsets = np.clip(tracker.offsets + step, -MAX_OFFSET, MAX_OFFSET)
            return
        step = rate * tracker.scale * (above - (1.0 - _LEVELS))
        tracker.scale = tracker.scale + rate * (distance - tracker.scale)
        tracker.offsets = np.clip(tracker.offsets + step, -MAX_OFFSET, MAX_OFFSET)

    def _touch(self, app: str) -> _Tracker:
        tracker = self.apps_.get(app)
        if tracker is None:
            tracker = self.apps_[app] = _Tracker(0.0, self.all_.offsets, self.all_.scale)
        return tracker


def _initial() -> _Tracker:
    return _Tracker(0.0, np.zeros(len(LEVELS)), np.full(len(LEVELS), PRIOR_SCALE))


def _fitted(residuals: Floats, above: _Tracker) -> _Tracker:
    """Return a tracker with the quantiles of the residuals (n, n_levels), shrunk to those of `above`."""
    n = len(residuals)
    own = np.array([np.quantile(residuals[:, i], level) for i, level in enumerate(LEVELS)])
    weight = n / (n + SHRINKAGE)
    scale = np.mean(np.abs(residuals - own), axis=0)
    offsets = np.clip(above.offsets + weight * (own - above.offsets), -MAX_OFFSET, MAX_OFFSET)
    return _Tracker(float(n), offsets, above.scale + weight * (scale - above.scale))


def _tracker_to_dict(tracker: _Tracker) -> dict[str, Any]:
    return {
        "n": tracker.n,
        "offsets": tracker.offsets.tolist(),
        "scale": tracker.scale.tolist(),
        "drift": tracker.drift,
    }


def _tracker_from_dict(stored: dict[str, Any]) -> _Tracker:
    return _Tracker(stored["n"], np.array(stored["offsets"], float), np.array(stored["scale"], float), stored["drift"])
