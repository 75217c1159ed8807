"""Who competes: a model, what serves where there is none, and what history had said at the time.

Each predicts as it would serve, calibration included, which learns from a row after its prediction.
"""

from copy import deepcopy

import numpy as np

from gateway.prediction.anchor_model import AnchorModel
from gateway.prediction.calibration import Calibration
from gateway.prediction.fitting import FittedPredictor
from gateway.scheduling.length import LEVELS
from gateway.training.comparison import Candidate, Floats
from gateway.training.window import Window

HISTORY_LEVELS = (0.5, 0.9)
"""What is stored of a prediction, so all that history alone can be held to."""


def predicted(name: str, fitted: FittedPredictor, unseen: Window, judge: Window) -> Candidate:
    """Let a model predict the rows that it was not fitted to, of which the last are those that judge.

    Args:
        name: for the report.
        fitted: the model with its calibration, which stays as it is.
        unseen: rows in their order, from which the calibration learns; ends with `judge`.
        judge: rows whose predictions count.
    """
    return _served(name, fitted.model.predict(unseen.features), deepcopy(fitted.calibration), unseen, len(judge))


def anchored(window: Window, judge: Window) -> Candidate:
    """Give what serves before there is any model: history's expectation, calibrated as it went."""
    return _served("history's expectation", AnchorModel().predict(window.features), Calibration(), window, len(judge))


def remembered(judge: Window) -> Candidate:
    """Give what history alone had predicted when the rows were served, as far as that was stored."""
    quantiles = np.column_stack([judge.history_p50, judge.history_p90])
    return Candidate("history", quantiles, HISTORY_LEVELS, np.asarray(np.isfinite(quantiles).all(axis=1)))


def _served(name: str, logs: Floats, calibration: Calibration, rows: Window, n_judged: int) -> Candidate:
    adjusted = np.empty_like(logs)
    for number, (app, row, tokens) in enumerate(zip(rows.apps, logs, rows.tokens, strict=True)):
        adjusted[number] = calibration.adjust_one(app, row)
        calibration.learn_one(app, row, tokens)
    return Candidate(name, np.exp(adjusted[len(rows) - n_judged :]), LEVELS, np.ones(n_judged, bool))
