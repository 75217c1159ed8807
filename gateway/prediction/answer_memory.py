"""The online memory of past answers: a prediction without any training, and the base of the trained one.

Every answer is learned once, in O(1), and the memory has a bounded size. It keeps one level for all requests, one for
each model, application and application on a model, and one for each system prompt (template) and user of an application
on a model. A level holds moments of log answer tokens and their regression on the log size of the prompt, a histogram
of answer lengths, and the bytes per token of prompts. It forgets exponentially and is shrunk to the level above it.
The length that the most specific level expects is the *anchor*. A trained model predicts only the difference to the
anchor, so it also holds for applications that it was not trained on, and follows drift.

Source: Teh et al., Hierarchical Dirichlet Processes, JASA 101 (2006), for the histograms; Efron & Morris, Stein's
paradox in statistics (1977), for shrinkage; Welford, Note on a method for calculating corrected sums of squares,
Technometrics 4 (1962), for the running moments.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, isnan, log, log1p, nan, sqrt
from statistics import NormalDist

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from gateway.prediction.prediction_input import HistoryKey
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.stored_text import stored_text

Floats = NDArray[np.float64]
LevelKey = tuple[str, ...]

PRIOR_MEDIAN_TOKENS = 115.0
PRIOR_SIGMA = 1.4
"""Lognormal prior of answer lengths: the median of Azure's 2023 conversation trace (CC BY 4.0, Patel et al.,
Splitwise), wide enough for one-word answers and for essays."""

PRIOR_BYTES_PER_TOKEN = 4.0
PRIOR_PROMPT_TOKENS = 200.0
"""Weight of the level above in a level's bytes per token, in prompt tokens."""

MEMORY = 1000.0
"""Answers after which the weight of an answer is 1/e, because prompts and models change."""

MEMORY_PROMPT_TOKENS = 200_000.0
"""Prompt tokens after which bytes per token are forgotten."""

CONCENTRATION = 6.0
"""Answers at which a level's own histogram weighs as much as the level above."""

SHRINKAGE = 4.0
"""Answers at which a level's own mean weighs as much as the level above."""

SLOPE_SHRINKAGE = 8.0
"""Answers, at unit variance of the log size, at which a level's own slope weighs as much as the level above."""

FAST, SLOW = 0.08, 0.02
"""Weight of the newest answer: in the recent mean (FAST), and in the error and the share that was cut (SLOW)."""

MAX_LEVELS = 100_000
"""Levels in memory; the least recently used level is dropped first."""

LEVEL_NAMES = ("all", "model", "app", "app_model", "template", "user")
LEVEL_FEATURES = ("count", "mean", "spread", "recent", "last", "ratio", "slope", "error", "cut", "expected")
HISTORY_FEATURES: tuple[str, ...] = tuple(f"{level}_{name}" for level in LEVEL_NAMES for name in LEVEL_FEATURES)
"""Names of the features, in the order of `AnswerMemory.features_one`."""

_HISTOGRAM_LEVELS = frozenset({"all", "model", "app", "user"})
_RATIO_LEVELS = frozenset({"model", "app_model"})
_UNSEEN = (0.0, *[nan] * (len(LEVEL_FEATURES) - 1))
_KEPT = 1.0 - 1.0 / MEMORY

BIN_RATIO = 1.15
MAX_TOKENS = 262_144
EDGES: Floats = np.concatenate(
    [np.arange(0.5, 8.0), 7.5 * BIN_RATIO ** np.arange(1, int(log(MAX_TOKENS / 7.5) / log(BIN_RATIO)) + 2)]
)
"""(n_bins + 1,) histogram edges in tokens: one bin per token up to 7, then each bin 15 % wider than the one before."""

N_BINS = len(EDGES) - 1
_LOG_EDGES: Floats = np.log(EDGES)
_FIRST_WIDE = 7


@dataclass(frozen=True, slots=True)
class PastAnswer:
    """A complete answer, as the memory learns it; None and NaN are unknown.

    Attributes:
        key: the names under which it is remembered.
        tokens: output tokens per sequence.
        sequences: answers of this length that the request had (`n`).
        size: log size of the prompt, the feature `size`.
        prompt_bytes: UTF-8 size of the prompt.
        input_tokens: the engine's count of prompt tokens.
        cut: whether `max_tokens` ended the answer.
    """

    key: HistoryKey
    tokens: float
    sequences: int = 1
    size: float = nan
    prompt_bytes: int = 0
    input_tokens: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class HistoryPrediction:
    """The predicted length per sequence; `source` names the most specific level with enough answers."""

    length: LengthQuantiles
    source: str


@dataclass(slots=True)
class _Level:
    """Running moments of log answer tokens (y) and of y with the log size (x), a histogram, and prompt sizes."""

    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
    sized: float = 0.0
    x_mean: float = 0.0
    y_mean: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    recent: float = 0.0
    error2: float = 0.0
    last: float = nan
    cut: float = 0.0
    histogram: Floats | None = None
    counted: float = 0.0
    prompt_bytes: float = 0.0
    prompt_tokens: float = 0.0

    def learn_moments(self, x: float, y: float, expected: float, cut: bool) -> None:
        self.n = self.n * _KEPT + 1.0
        step = 1.0 / self.n
        delta = y - self.mean
        self.mean += delta * step
        self.m2 = self.m2 * _KEPT + delta * (y - self.mean)
        self.recent += (y - self.recent) * max(FAST, step)
        self.error2 += ((y - expected) ** 2 - self.error2) * max(SLOW, step)
        self.cut += (cut - self.cut) * max(SLOW, step)
        self.last = y
        if not isnan(x):
            self.sized = self.sized * _KEPT + 1.0
            dx = x - self.x_mean
            self.x_mean += dx / self.sized
            self.y_mean += (y - self.y_mean) / self.sized
            self.xx = self.xx * _KEPT + dx * (x - self.x_mean)
            self.xy = self.xy * _KEPT + dx * (y - self.y_mean)

    def learn_length(self, index: int, weight: float) -> None:
        if self.histogram is None:
            self.histogram = np.zeros(N_BINS)
        kept = exp(-weight / MEMORY)
        self.histogram *= kept
        self.histogram[index] += weight
        self.counted = self.counted * kept + weight

    def learn_ratio(self, prompt_bytes: int, prompt_tokens: int) -> None:
        kept = MEMORY_PROMPT_TOKENS / (MEMORY_PROMPT_TOKENS + prompt_tokens)
        self.prompt_bytes = (self.prompt_bytes + prompt_bytes) * kept
        self.prompt_tokens = (self.prompt_tokens + prompt_tokens) * kept

    def features(self, estimate: "_Estimate") -> tuple[float, ...]:
        """Return the `LEVEL_FEATURES`; `estimate` is the one at this level."""
        return (
            log1p(self.n),
            estimate.mean,
            sqrt(max(0.0, estimate.variance)),
            estimate.recent - estimate.mean,
            self.last - estimate.mean,
            self.y_mean - self.x_mean if self.sized else nan,
            estimate.slope,
            sqrt(self.error2),
            self.cut,
            estimate.expected,
        )


@dataclass(slots=True)
class _Estimate:
    """The estimate from all levels down to one, in log tokens; `expected` is for the size of the request."""

    mean: float
    variance: float
    recent: float
    slope: float
    expected: float

    def with_level(self, level: _Level, x: float) -> "_Estimate":
        """Return the estimate one level further down: that level's moments, shrunk to this estimate."""
        weight = level.n / (level.n + SHRINKAGE)
        slope = (level.xy + SLOPE_SHRINKAGE * self.slope) / (level.xx + SLOPE_SHRINKAGE)
        line = level.mean if isnan(x) or not level.sized else level.y_mean + slope * (x - level.x_mean)
        return _Estimate(
            self.mean + weight * (level.mean - self.mean),
            self.variance + weight * (level.m2 / level.n - self.variance),
            self.recent + weight * (level.recent - self.recent),
            slope,
            self.expected + weight * (line - self.expected),
        )


PRIOR_EXPECTED = log(PRIOR_MEDIAN_TOKENS)
"""The anchor before the first answer, in log tokens."""

_PRIOR = _Estimate(PRIOR_EXPECTED, PRIOR_SIGMA**2, PRIOR_EXPECTED, 0.0, PRIOR_EXPECTED)


class AnswerMemory:
    """Learns complete answers; predicts lengths and prompt tokens, and makes the history features.

    >>> memory, key = AnswerMemory(), HistoryKey("chat", "llama")
    >>> memory.prompt_tokens(key, 4000)
    1000
    >>> for _ in range(100):
    ...     memory.learn_one(PastAnswer(key, 50.0, prompt_bytes=2000, input_tokens=1000))
    >>> memory.prompt_tokens(key, 4000), memory.predict_one(key).source
    (2000, 'history:app')
    """

    def __init__(self) -> None:
        self._levels: LRUCache[LevelKey, _Level] = LRUCache(MAX_LEVELS)
        self._prior = lognormal_shares(PRIOR_MEDIAN_TOKENS, PRIOR_SIGMA)

    def predict_one(self, key: HistoryKey, max_tokens: int | None = None) -> HistoryPrediction:
        """Predict the length of the next answer from the histograms, capped by `max_tokens`."""
        shares, source = self._prior, "prior"
        for name, level_key in _level_keys(key):
            level = self._levels.get(level_key)
            if level is not None and level.histogram is not None:
                shares = (level.histogram + CONCENTRATION * shares) / (level.counted + CONCENTRATION)
                source = f"history:{name}" if level.counted >= CONCENTRATION else source
        return HistoryPrediction(histogram_quantiles(shares, cap=max_tokens), source)

    def features_one(self, key: HistoryKey, size: float) -> tuple[list[float], float]:
        """Return the values of `HISTORY_FEATURES` and the anchor, in log tokens, from the answers so far.

        Args:
            key: the request's names.
            size: log size of its prompt; NaN if unknown.
        """
        values: list[float] = []
        estimate = _PRIOR
        keys = dict(_level_keys(key))
        for name in LEVEL_NAMES:
            level = self._levels.get(keys[name]) if name in keys else None
            if level is None:
                values += _UNSEEN
            else:
                estimate = estimate.with_level(level, size)
                values += level.features(estimate)
        return values, estimate.expected

    def prompt_tokens(self, key: HistoryKey, prompt_bytes: int) -> int:
        """Estimate the tokens of a prompt from its bytes; at least one."""
        ratio = PRIOR_BYTES_PER_TOKEN
        for level_key in (("model", key.model), ("app_model", key.app, key.model)):
            level = self._levels.get(level_key)
            if level is not None:
                weight = level.prompt_tokens + PRIOR_PROMPT_TOKENS
                ratio = (level.prompt_bytes + PRIOR_PROMPT_TOKENS * ratio) / weight
        return max(1, round(prompt_bytes / ratio))

    def learn_one(self, answer: PastAnswer) -> None:
        """Learn a complete answer."""
        y, index, estimate = log(max(1.0, answer.tokens)), bin_of(round(answer.tokens)), _PRIOR
        input_tokens = answer.input_tokens or 0
        for name, level_key in _level_keys(answer.key):
            level = self._touch(level_key)
            estimate = estimate.with_level(level, answer.size) if level.n else estimate
            level.learn_moments(answer.size, y, estimate.expected, answer.cut)
            if name in _HISTOGRAM_LEVELS:
                level.learn_length(index, float(answer.sequences))
            if name in _RATIO_LEVELS and answer.prompt_bytes > 0 and input_tokens > 0:
                level.learn_ratio(answer.prompt_bytes, input_tokens)

    def forget_user(self, app: str, user: str) -> int:
        """Delete what is remembered of one end user. Return the number of deleted levels, one for each model."""
        app, user = stored_text(app), stored_text(user)
        levels = [level for level in self._levels if level[:2] == ("user", app) and level[3] == user]
        for level in levels:
            del self._levels[level]
        return len(levels)

    def _touch(self, level_key: LevelKey) -> _Level:
        level = self._levels.get(level_key)
        if level is None:
            level = self._levels[level_key] = _Level()
        return level


def _level_keys(key: HistoryKey) -> Iterable[tuple[str, LevelKey]]:
    """Return the names and keys of a request's levels, in the order of `LEVEL_NAMES`."""
    keys: list[tuple[str, LevelKey]] = [
        ("all", ("all",)),
        ("model", ("model", key.model)),
        ("app", ("app", key.app)),
        ("app_model", ("app_model", key.app, key.model)),
    ]
    if key.template is not None:
        keys.append(("template", ("template", key.app, key.model, key.template)))
    if key.user is not None:
        keys.append(("user", ("user", key.app, key.model, key.user)))
    return keys


def bin_of(tokens: int) -> int:
    """Return the index of the histogram bin of a length; 0 counts as 1, more than `MAX_TOKENS` as the last bin.

    >>> [bin_of(n) for n in (0, 1, 7, 8, 10**9)] == [0, 0, 6, 7, N_BINS - 1]
    True
    """
    if tokens <= _FIRST_WIDE:
        return max(tokens, 1) - 1
    return min(N_BINS - 1, _FIRST_WIDE + int(log(tokens / 7.5) / log(BIN_RATIO)))


def lognormal_shares(median_tokens: float, sigma: float) -> Floats:
    """Return the histogram (n_bins,) of a lognormal distribution; it sums to one."""
    cdf = NormalDist(log(median_tokens), sigma).cdf
    shares = np.diff([cdf(edge) for edge in _LOG_EDGES])
    return np.asarray(shares / shares.sum())


def histogram_quantiles(shares: Floats, *, cap: int | None = None) -> LengthQuantiles:
    """Return the quantiles of a histogram, log-uniform within each bin.

    Args:
        shares: (n_bins,), non-negative, not all zero.
        cap: the request's `max_tokens`.
    """
    cumulated = np.concatenate([[0.0], np.cumsum(shares)])
    logs = np.interp(np.asarray(LEVELS) * cumulated[-1], cumulated, _LOG_EDGES)
    return LengthQuantiles.of(tuple(np.exp(logs).tolist()), cap=cap)
