"""Champion against challenger: a new model serves only if it is better on the newest rows, which neither has seen.

The measure is the pinball loss in tokens, the mean over the levels at which both give quantiles: at 0.5 it is half the
mean absolute error, and at every level it is least for the true quantile.

Source: Koenker & Bassett, Regression quantiles, Econometrica 46 (1978).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.prediction.evaluation import pinball
from gateway.training.window import Window

HOLDOUT_SHARE = 0.2
MAX_HOLDOUT = 10_000
MIN_JUDGED = 30
"""Rows under which nobody has won."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One side of a contest: tokens (n, n_levels) at `levels`, for the rows that are `known` (n,)."""

    name: str
    quantiles: Floats
    levels: tuple[float, ...]
    known: NDArray[np.bool_]

    def at(self, level: float) -> Floats:
        """Give its quantiles (n,) at one of its levels."""
        return np.asarray(self.quantiles[:, self.levels.index(level)])

    def loss(self, tokens: Floats, among: "Candidate") -> float:
        """Mean pinball loss for lengths (n,), at the levels and on the rows that `among` has."""
        rows = among.known
        return float(np.mean([pinball(self.at(level)[rows], tokens[rows], level) for level in among.levels]))

    def metrics(self, tokens: Floats) -> dict[str, float]:
        """Measure it against what came, (n,): the median's errors, the 0.9-quantile's coverage and loss."""
        actual, p50, p90 = (values[self.known] for values in (tokens, self.at(0.5), self.at(0.9)))
        return {
            "n": len(actual),
            "mae": float(np.abs(p50 - actual).mean()),
            "rmse": float(np.sqrt(((p50 - actual) ** 2).mean())),
            "p90_coverage": float((actual <= p90).mean()),
            "pinball_p90": pinball(p90, actual, 0.9),
        }


def split(window: Window) -> tuple[Window, Window]:
    """Part the window in time: rows to fit to, and newer ones to judge by."""
    first = len(window) - min(round(HOLDOUT_SHARE * len(window)), MAX_HOLDOUT)
    return window[:first], window[first:]


def strongest(champions: Sequence[Candidate], challenger: Candidate, tokens: Floats) -> Candidate:
    """Give the champion that the challenger does worst against; who beats that one beats all."""
    return min(champions, key=lambda champion: champion.loss(tokens, champion) / challenger.loss(tokens, champion))


def is_better(challenger: Candidate, champion: Candidate, tokens: Floats) -> bool:
    """Tell whether the challenger predicts lengths (n,) with the smaller loss, where the champion predicts any."""
    return challenger.loss(tokens, champion) < champion.loss(tokens, champion)
