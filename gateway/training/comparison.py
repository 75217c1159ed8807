"""Comparison of models: a new one serves only if it is better on the newest rows, to which no candidate was fitted.

The measure is the pinball loss in tokens, the mean over the levels for which both candidates have quantiles. At level
0.5 it is half the mean absolute error, and at every level the true quantile has the smallest loss. Each candidate
predicts as it would serve: its calibration learns from a row after the prediction of that row.

Source: Koenker & Bassett, Regression quantiles, Econometrica 46 (1978).
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.calibration import Calibration
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.length_predictor import AnchorModel
from gateway.prediction.metrics import pinball
from gateway.scheduling.length import LEVELS
from gateway.training.window import Window

HOLDOUT_SHARE = 0.2
MAX_HOLDOUT = 10_000
MIN_JUDGED = 30
"""Rows that a comparison needs at least."""

HISTORY_LEVELS = (0.5, 0.9)
"""Levels of the stored predictions from history."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """The predictions of one candidate.

    Attributes:
        name: for the report.
        quantiles: (n, n_levels) tokens at `levels`.
        levels: the levels that the candidate predicts.
        known: (n,), the rows that it has predicted.
    """

    name: str
    quantiles: Floats
    levels: tuple[float, ...]
    known: NDArray[np.bool_]

    def quantile(self, level: float) -> Floats:
        """Return its quantiles (n,) at one of its levels."""
        return np.asarray(self.quantiles[:, self.levels.index(level)])

    def loss(self, tokens: Floats, among: "Candidate") -> float:
        """Return the mean pinball loss for lengths (n,), at the levels and on the rows that `among` has."""
        rows = among.known
        return float(np.mean([pinball(self.quantile(level)[rows], tokens[rows], level) for level in among.levels]))

    def metrics(self, tokens: Floats) -> dict[str, float]:
        """Return its errors for lengths (n,): of the median, and the coverage and loss of the 0.9-quantile."""
        actual, p50, p90 = (values[self.known] for values in (tokens, self.quantile(0.5), self.quantile(0.9)))
        return {
            "n": len(actual),
            "mae": float(np.abs(p50 - actual).mean()),
            "rmse": float(np.sqrt(((p50 - actual) ** 2).mean())),
            "p90_coverage": float((actual <= p90).mean()),
            "pinball_p90": pinball(p90, actual, 0.9),
        }


def model_candidate(name: str, fitted: FittedPredictor, unseen: Window, judge: Window) -> Candidate:
    """Return the predictions of a model.

    Args:
        name: for the report.
        fitted: the model with its calibration, which is not changed.
        unseen: rows in time order that the model was not fitted to; the calibration learns from them. They end with
            `judge`.
        judge: rows whose predictions count.
    """
    return _served(name, fitted.model.predict(unseen.features), deepcopy(fitted.calibration), unseen, len(judge))


def anchor_candidate(window: Window, judge: Window) -> Candidate:
    """Return the predictions of the length predictor before the first training, calibrated online."""
    return _served("history's expectation", AnchorModel().predict(window.features), Calibration(), window, len(judge))


def history_candidate(judge: Window) -> Candidate:
    """Return the predictions from history alone that were stored when the rows were served."""
    quantiles = np.column_stack([judge.history_p50, judge.history_p90])
    return Candidate("history", quantiles, HISTORY_LEVELS, np.asarray(np.isfinite(quantiles).all(axis=1)))


def split_holdout(window: Window) -> tuple[Window, Window]:
    """Split the window in time: rows to fit to, and newer rows to compare on."""
    first = len(window) - min(round(HOLDOUT_SHARE * len(window)), MAX_HOLDOUT)
    return window[:first], window[first:]


def strongest(champions: Sequence[Candidate], challenger: Candidate, tokens: Floats) -> Candidate:
    """Return the champion against which the challenger is worst; a challenger that beats it beats all."""
    return min(champions, key=lambda champion: champion.loss(tokens, champion) / challenger.loss(tokens, champion))


def is_better(challenger: Candidate, champion: Candidate, tokens: Floats) -> bool:
    """Return whether the challenger has the smaller loss for lengths (n,), where the champion has predictions."""
    return challenger.loss(tokens, champion) < champion.loss(tokens, champion)


def _served(name: str, logs: Floats, calibration: Calibration, rows: Window, n_judged: int) -> Candidate:
    adjusted = np.empty_like(logs)
    for number, (app, row, tokens) in enumerate(zip(rows.apps, logs, rows.tokens, strict=True)):
        adjusted[number] = calibration.adjust_one(app, row)
        calibration.learn_one(app, row, tokens)
    return Candidate(name, np.exp(adjusted[len(rows) - n_judged :]), LEVELS, np.ones(n_judged, bool))
