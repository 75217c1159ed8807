"""Online conformal calibration: per application, how far each predicted quantile has to move to cover its share.

Every level is tracked by its own pinball gradient, so coverage comes right whatever the model gets wrong, at a rate
that averages noise away. When an application's answers keep falling on one side of their median, all its levels move
together, and fast: that is drift, and a slow tracker would need thousands of answers for it.

Source: Gibbs & Candès, Adaptive conformal inference under distribution shift (2021); Angelopoulos, Candès & Tibshirani,
Conformal PID control for time series (2023), eq. 2: quantile tracking; Romano, Patterson & Candès, Conformalized
quantile regression (2019), for the batch offsets.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]

MAX_OFFSET = 3.0
"""Bound of any offset in log tokens: a factor of 20."""

PRIOR_SCALE = 0.5
"""Distance of answers from their quantiles before any was seen, in log tokens."""

SHRINKAGE = 50.0
"""Rows at which an application's own batch offsets weigh as much as those of all."""

EARLY = 5.0
"""An application's first answers move its offsets by up to `EARLY / SHRINKAGE` typical errors each."""

MAX_APPS = 10_000

_LEVELS: Floats = np.array(LEVELS)
_MEDIAN = LEVELS.index(0.5)


@dataclass(slots=True)
class _Tracker:
    """One application's offsets (n_levels,), and what their steps depend on.

    `scale` (n_levels,) is the typical distance of answers from each quantile; `drift` (-1 to 1) is the side of the
    median on which they fall of late.
    """

    n: float
    offsets: Floats
    scale: Floats
    drift: float = 0.0


class Calibration:
    """Offsets to log quantiles, per application; an application never seen starts from those of all.

    Args:
        rate: step of the trackers, in typical errors.
        drift_rate: step of all levels together under full drift.
        drift_memory: weight of the newest answer in the drift signal.
        drift_threshold: signal (0 to 1) above which drift is acted on; noise alone stays under it.

    Attributes:
        all_: tracker of all applications together.
        apps_: trackers by application.
    """

    def __init__(
        self, *, rate: float = 0.02, drift_rate: float = 0.5, drift_memory: float = 0.05, drift_threshold: float = 0.5
    ) -> None:
        self.rate = rate
        self.drift_rate = drift_rate
        self.drift_memory = drift_memory
        self.drift_threshold = drift_threshold
        self.all_ = _untaught()
        self.apps_: OrderedDict[str, _Tracker] = OrderedDict()

    def fit(self, apps: Sequence[str], logs: Floats, tokens: Floats) -> "Calibration":
        """Fit the offsets on answers that the model has not seen.

        Args:
            apps: (n,) application of each.
            logs: (n, n_levels) predicted log tokens.
            tokens: (n,) tokens of the answers.
        """
        residuals = np.log(np.maximum(tokens, 1.0))[:, None] - logs
        self.apps_.clear()
        self.all_ = _fitted(residuals, _untaught())
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
            logs: (n_levels,) what the model predicted for it, before adjustment.
            tokens: its tokens, per sequence.
        """
        errors = np.log(max(1.0, tokens)) - logs
        self._learn(self._touch(app), errors)
        self._learn(self.all_, errors)

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters and the state in JSON's types."""
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
        """Read back what `to_dict` returned."""
        parameters = {name: value for name, value in stored.items() if name not in {"all", "apps"}}
        calibration = cls(**parameters)
        calibration.all_ = _tracker_from_dict(stored["all"])
        calibration.apps_ = OrderedDict((app, _tracker_from_dict(tracker)) for app, tracker in stored["apps"].items())
        return calibration

    def _learn(self, tracker: _Tracker, errors: Floats) -> None:
        above = errors > tracker.offsets
        side = 1.0 if above[_MEDIAN] else -1.0
        distance = np.minimum(np.abs(errors - tracker.offsets), MAX_OFFSET)
        tracker.n += 1.0
        tracker.drift += self.drift_memory * (side - tracker.drift)
        rate = max(self.rate, EARLY / (tracker.n + SHRINKAGE))
        excess = (side * tracker.drift - self.drift_threshold) / (1.0 - self.drift_threshold)
        if excess > 0.0:  # drift: the levels move as one, and keep their distances
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
            if len(self.apps_) > MAX_APPS:
                self.apps_.popitem(last=False)
        self.apps_.move_to_end(app)
        return tracker


def _untaught() -> _Tracker:
    return _Tracker(0.0, np.zeros(len(LEVELS)), np.full(len(LEVELS), PRIOR_SCALE))


def _fitted(residuals: Floats, above: _Tracker) -> _Tracker:
    """Return a tracker with the residuals' (n, n_levels) own quantiles, shrunk to the level above."""
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
