"""Functions of an answer's quantiles: its mean, and the probability that `max_tokens` ends it.

Between and beyond the levels log length is linear in the normal score, as in `LengthQuantiles`. All functions are sums
over equally likely points of that distribution.
"""

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]

N_POINTS = 200
CUT_TOLERANCE = 0.2
"""In log tokens: a predicted length this close to `max_tokens` counts as cut. Trees smooth the jump that a limit makes
in the quantiles; without this tolerance, an answer that is cut in 37 % of cases has a predicted probability of 20 %."""


def _point_weights() -> Floats:
    """Return (n_levels, N_POINTS): the weight of each level's log length in that of each point."""
    scores = [NormalDist().inv_cdf(level) for level in LEVELS]
    weights = np.zeros((len(LEVELS), N_POINTS))
    for point in range(N_POINTS):
        score = NormalDist().inv_cdf((point + 0.5) / N_POINTS)
        left = int(np.clip(np.searchsorted(scores, score) - 1, 0, len(scores) - 2))
        share = (score - scores[left]) / (scores[left + 1] - scores[left])
        weights[left, point] = 1.0 - share
        weights[left + 1, point] = share
    return weights


_WEIGHTS = _point_weights()


def expected_tokens(logs: Floats, cap: int | None = None) -> Floats:
    """Return the mean of answers (...,) from log tokens at `LEVELS` (..., n_levels), cut at `cap`.

    >>> from math import exp, log
    >>> lognormal = log(100) + 0.5 * np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    >>> round(float(expected_tokens(lognormal)), 1), round(100 * exp(0.5**2 / 2), 1)
    (113.2, 113.3)
    """
    points = np.exp(logs @ _WEIGHTS)
    return np.asarray((points if cap is None else np.minimum(points, cap)).mean(axis=-1))


def expected_logs(logs: Floats) -> Floats:
    """Return the mean of log tokens (...,) from log tokens at `LEVELS` (..., n_levels)."""
    return np.asarray((logs @ _WEIGHTS).mean(axis=-1))


def cut_probability(logs: Floats, max_tokens: int) -> Floats:
    """Return the probability (...,) that an answer reaches `max_tokens`, from log tokens (..., n_levels).

    >>> lognormal = np.log(100) + 0.5 * np.array([NormalDist().inv_cdf(level) for level in LEVELS])
    >>> float(cut_probability(lognormal, 100)), float(cut_probability(lognormal, 10_000))
    (0.655, 0.0)
    """
    return np.asarray((logs @ _WEIGHTS >= np.log(max_tokens) - CUT_TOLERANCE).mean(axis=-1))
