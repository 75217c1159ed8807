"""Histograms of answer lengths over logarithmic bins: counts to learn into, shares to mix, quantiles to read off."""

from math import log

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LEVELS, LengthQuantiles

Floats = NDArray[np.float64]

RATIO = 1.15
MAX_TOKENS = 262_144
EDGES: Floats = np.concatenate(
    [np.arange(0.5, 8.0), 7.5 * RATIO ** np.arange(1, int(log(MAX_TOKENS / 7.5) / log(RATIO)) + 2)]
)
"""(n_bins + 1,) bin edges in tokens: one bin a token up to 7, then each 15 % wider than the last."""

N_BINS = len(EDGES) - 1
_LOG_EDGES: Floats = np.log(EDGES)
_FIRST_WIDE = 7


def bin_of(tokens: int) -> int:
    """Index of the bin that holds a length; 0 tokens count as 1, what is beyond `MAX_TOKENS` as the last bin.

    >>> [bin_of(n) for n in (0, 1, 7, 8, 10**9)] == [0, 0, 6, 7, N_BINS - 1]
    True
    """
    if tokens <= _FIRST_WIDE:
        return max(tokens, 1) - 1
    return min(N_BINS - 1, _FIRST_WIDE + int(log(tokens / 7.5) / log(RATIO)))


def lognormal_shares(median_tokens: float, sigma: float) -> Floats:
    """Shares (n_bins,) of a lognormal distribution, summing to one."""
    from statistics import NormalDist

    cdf = NormalDist(log(median_tokens), sigma).cdf
    shares = np.diff([cdf(edge) for edge in _LOG_EDGES])
    return np.asarray(shares / shares.sum())


def quantiles(shares: Floats, *, cap: int | None = None) -> LengthQuantiles:
    """Read the distribution's quantiles off a histogram, log-uniform within each bin.

    Args:
        shares: (n_bins,), non-negative, not all zero.
        cap: the request's `max_tokens`.
    """
    cumulated = np.concatenate([[0.0], np.cumsum(shares)])
    logs = np.interp(np.asarray(LEVELS) * cumulated[-1], cumulated, _LOG_EDGES)
    return LengthQuantiles.of(tuple(np.exp(logs).tolist()), cap=cap)
