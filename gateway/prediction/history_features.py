"""What past answers say of the next one, as numbers: an online state of bounded size, learned one answer at a time.

Six levels, each shrunk to the one above: all requests, a model, an application, an application on a model, one system
prompt of it (a template) and one user of it. A level forgets exponentially, and regresses log answer tokens on the log
size of the prompt. What the most specific level expects is the *anchor*: a trained model explains only how the answer
differs from it. So a model trained on some applications holds for others, and follows drift that it has never seen.

Source: Efron & Morris, Stein's paradox in statistics (1977), for shrinkage to the level above; Welford, Note on a
method for calculating corrected sums of squares, Technometrics 4 (1962), for the running moments.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan, log, log1p, nan, sqrt

from gateway.prediction.history import PRIOR_MEDIAN_TOKENS, PRIOR_SIGMA
from gateway.prediction.prediction_input import HistoryKey

SHRINKAGE = 4.0
"""Answers at which a level's own mean weighs as much as the level above."""

SLOPE_SHRINKAGE = 8.0
"""Answers, at unit variance of the log size, at which a level's own slope weighs as much as the one above."""

MEMORY = 1000.0
"""Answers after which one's weight has fallen to 1/e."""

FAST, SLOW = 0.08, 0.02
"""Weights of the newest answer in the recent mean, and in the error and the share cut."""

MAX_LEVELS = 100_000
"""Levels kept; those longest unused go first."""

LEVEL_NAMES = ("all", "model", "app", "app_model", "template", "user")
LEVEL_FEATURES = ("count", "mean", "spread", "recent", "last", "ratio", "slope", "error", "cut", "expected")

HISTORY_FEATURES: tuple[str, ...] = tuple(f"{level}_{name}" for level in LEVEL_NAMES for name in LEVEL_FEATURES)
"""Names of the features, in the order of `HistoryFeatures.features_one`."""

_UNSEEN = (0.0, *[nan] * (len(LEVEL_FEATURES) - 1))


@dataclass(slots=True)
class _Level:
    """Running moments of log answer tokens (y), and of y with the log size (x) where a size was known."""

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

    def learn(self, x: float, y: float, expected: float, cut: bool) -> None:
        self.n = self.n * (1.0 - 1.0 / MEMORY) + 1.0
        step = 1.0 / self.n
        delta = y - self.mean
        self.mean += delta * step
        self.m2 = self.m2 * (1.0 - 1.0 / MEMORY) + delta * (y - self.mean)
        self.recent += (y - self.recent) * max(FAST, step)
        self.error2 += ((y - expected) ** 2 - self.error2) * max(SLOW, step)
        self.cut += (cut - self.cut) * max(SLOW, step)
        self.last = y
        if not isnan(x):
            self._learn_line(x, y)

    def _learn_line(self, x: float, y: float) -> None:
        kept = 1.0 - 1.0 / MEMORY
        self.sized = self.sized * kept + 1.0
        dx = x - self.x_mean
        self.x_mean += dx / self.sized
        self.y_mean += (y - self.y_mean) / self.sized
        self.xx = self.xx * kept + dx * (x - self.x_mean)
        self.xy = self.xy * kept + dx * (y - self.y_mean)


@dataclass(frozen=True, slots=True)
class _Belief:
    """What the levels down to one say together, in log tokens; `expected` is for the size at hand."""

    mean: float
    variance: float
    recent: float
    slope: float
    expected: float

    def with_level(self, level: _Level, x: float) -> "_Belief":
        """Return the belief one level further down, its own observations weighed against this belief."""
        weight = level.n / (level.n + SHRINKAGE)
        slope = (level.xy + SLOPE_SHRINKAGE * self.slope) / (level.xx + SLOPE_SHRINKAGE)
        line = level.mean if isnan(x) or not level.sized else level.y_mean + slope * (x - level.x_mean)
        return _Belief(
            self.mean + weight * (level.mean - self.mean),
            self.variance + weight * (level.m2 / level.n - self.variance),
            self.recent + weight * (level.recent - self.recent),
            slope,
            self.expected + weight * (line - self.expected),
        )


_PRIOR_LOG = log(PRIOR_MEDIAN_TOKENS)
_PRIOR = _Belief(_PRIOR_LOG, PRIOR_SIGMA**2, _PRIOR_LOG, 0.0, _PRIOR_LOG)

PRIOR_EXPECTED = _PRIOR_LOG
"""The anchor before any answer, in log tokens."""


class HistoryFeatures:
    """Features from the answers learned so far, never from the one that is asked about."""

    def __init__(self) -> None:
        self._levels: OrderedDict[tuple[str, ...], _Level] = OrderedDict()

    def features_one(self, key: HistoryKey, size: float) -> tuple[list[float], float]:
        """Return the values of `HISTORY_FEATURES` and the anchor, in log tokens, as of now.

        Args:
            key: whose request it is.
            size: log size of what is asked; NaN where unknown.
        """
        values: list[float] = []
        belief = _PRIOR
        for name in _level_keys(key):
            level = None if name is None else self._levels.get(name)
            if level is None:
                values += _UNSEEN
            else:
                belief = belief.with_level(level, size)
                values += _values(level, belief)
        return values, belief.expected

    def learn_one(self, key: HistoryKey, size: float, tokens: float, *, cut: bool = False) -> None:
        """Learn from an answer of so many tokens; `cut` tells that `max_tokens` ended it."""
        y = log(max(1.0, tokens))
        belief = _PRIOR
        for name in _level_keys(key):
            if name is not None:
                level = self._touch(name)
                belief = belief.with_level(level, size) if level.n else belief
                level.learn(size, y, belief.expected, cut)

    def _touch(self, name: tuple[str, ...]) -> _Level:
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level()
            if len(self._levels) > MAX_LEVELS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(name)
        return level


def _level_keys(key: HistoryKey) -> Iterator[tuple[str, ...] | None]:
    """Yield the levels' keys in the order of `LEVEL_NAMES`; None where the request has no such level."""
    yield ("all",)
    yield ("model", key.model)
    yield ("app", key.app)
    yield ("app_model", key.app, key.model)
    yield None if key.template is None else ("template", key.app, key.model, key.template)
    yield None if key.user is None else ("user", key.app, key.model, key.user)


def _values(level: _Level, belief: _Belief) -> tuple[float, ...]:
    """Return the level's `LEVEL_FEATURES`."""
    return (
        log1p(level.n),
        belief.mean,
        sqrt(max(0.0, belief.variance)),
        belief.recent - belief.mean,
        level.last - belief.mean,
        level.y_mean - level.x_mean if level.sized else nan,
        belief.slope,
        sqrt(level.error2),
        level.cut,
        belief.expected,
    )
