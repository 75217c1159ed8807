"""How good the last predictions were: what the stats show, and what drift is seen by."""

from collections import deque

import numpy as np

WINDOW = 512


class RecentQuality:
    """Errors of the last `WINDOW` predictions.

    >>> quality = RecentQuality()
    >>> for predicted, actual in ((10, 12), (20, 20), (30, 45)):
    ...     quality.learn_one(predicted, predicted * 1.3, actual)
    >>> round(quality.mae(), 2), round(quality.p90_coverage(), 2), quality.kendall_tau()
    (5.67, 0.67, 1.0)
    """

    def __init__(self) -> None:
        self.seen = 0
        self._rows: deque[tuple[float, float, float]] = deque(maxlen=WINDOW)

    def learn_one(self, predicted_tokens: float, predicted_p90_tokens: float, actual_tokens: float) -> None:
        """Note one prediction (median and 0.9-quantile) and what came of it, in tokens per sequence."""
        self.seen += 1
        self._rows.append((predicted_tokens, predicted_p90_tokens, actual_tokens))

    def mae(self) -> float | None:
        """Mean absolute error of the median, in tokens; None before the first row."""
        return float(np.mean([abs(p - a) for p, _, a in self._rows])) if self._rows else None

    def p90_coverage(self) -> float | None:
        """Share of answers that were no longer than their predicted 0.9-quantile."""
        return float(np.mean([a <= p90 for _, p90, a in self._rows])) if self._rows else None

    def kendall_tau(self) -> float | None:
        """Kendall's tau-b between predicted and actual lengths: how well the order is known; None where undefined.

        Source: Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).
        """
        rows = np.asarray(self._rows)
        if len(rows) < 2:
            return None
        predicted = np.sign(rows[:, None, 0] - rows[None, :, 0])
        actual = np.sign(rows[:, None, 2] - rows[None, :, 2])
        norm = float(np.sqrt(np.sum(predicted**2) * np.sum(actual**2)))
        return float(np.sum(predicted * actual) / norm) if norm else None
