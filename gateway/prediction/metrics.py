"""Measures of prediction quality."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def pinball(predicted: Floats, actual: Floats, level: float) -> float:
    """Return the mean pinball loss of predicted quantiles (n,) at a level.

    >>> pinball(np.array([10.0, 10.0]), np.array([20.0, 0.0]), 0.9)
    5.0
    """
    miss = actual - predicted
    return float(np.mean(np.maximum(level * miss, (level - 1.0) * miss)))


def kendall_tau(predicted: Floats, actual: Floats) -> float | None:
    """Return Kendall's tau-b of two rankings (n,), in O(n log n); None if one of them is constant.

    Source: Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945); Knight, A computer method for
    calculating Kendall's tau with ungrouped data, JASA 61 (1966).

    >>> round(kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])), 3)
    0.333
    """
    n = len(predicted)
    x = np.unique(predicted, return_inverse=True)[1]
    y = np.unique(actual, return_inverse=True)[1]
    pairs = n * (n - 1) // 2
    tied_x, tied_y, tied_both = _tied_pairs(x), _tied_pairs(y), _tied_pairs(x * (n + 1) + y)
    if tied_x == pairs or tied_y == pairs:
        return None
    order = np.lexsort((y, x))
    concordant_less_discordant = pairs - tied_x - tied_y + tied_both - 2 * _inversions(y[order])
    tau = concordant_less_discordant / np.sqrt(pairs - tied_x) / np.sqrt(pairs - tied_y)
    return float(np.clip(tau, -1.0, 1.0))


def _tied_pairs(values: NDArray[np.intp]) -> int:
    counts = np.unique(values, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: NDArray[np.intp]) -> int:
    """Return the number of pairs i < j with ranks[i] > ranks[j]: a merge sort, all runs of one width in one step."""
    n = len(ranks)
    inversions, width = 0, 1
    stride = int(ranks.max(initial=0)) + 1
    while width < n:
        # Within a run the ranks are sorted, so adding a multiple of `stride` per pair of runs sorts all of them.
        run = np.arange(n) // width
        keys = ranks + (run // 2) * stride
        left, right = keys[run % 2 == 0], keys[run % 2 == 1]
        before = np.minimum((run[run % 2 == 1] + 1) * width // 2, len(left))
        inversions += int((before - np.searchsorted(left, right, side="right")).sum())
        ranks = np.sort(keys) - (run // 2) * stride
        width *= 2
    return inversions
