"""What past answers say of the next one, as numbers: an online state of bounded size, learned from one answer at a time.

Five levels, each shrunk to the one above: all requests, a model, an application, an application on a model, and a user
of an application on a model. A level forgets exponentially, and regresses log answer tokens on the log size of the prompt. The most
specific level's prediction is the *anchor*: what is left for a trained model to explain is how the answer differs from
it, so that a model trained on some applications holds for others, and follows a drift that it has never seen.

Source: Efron & Morris, Stein's paradox in statistics (1977), for shrinkage to the mean of the level above; West,
Updating mean and variance estimates, CACM 22 (1979), for the running moments.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from math import isnan, log1p, nan, sqrt

PRIOR_LOG_TOKENS = 4.75
"""Log of the prior median; the history predictor's is the same 115 tokens."""

PRIOR_VARIANCE = 1.4**2
SHRINKAGE = 4.0
"""Answers at which a level's own mean weighs as much as the level above."""

SLOPE_SHRINKAGE = 8.0
"""Answers, at a unit variance of log size, at which a level's own slope weighs as much as the one above."""

MEMORY = 1000.0
"""Answers after which one's weight has fallen to 1/e."""

FAST = 0.08
"""Weight of the newest answer in the recent mean: the trend of some dozen answers."""

MAX_LEVELS = 50_000
"""Levels kept; those longest unused go first."""

LEVEL_NAMES = ("all", "model", "app", "app_model", "user")
_LEVEL_FEATURES = ("count", "mean", "spread", "recent", "last", "ratio", "slope", "residual_spread", "expected", "cut")

HISTORY_FEATURES: tuple[str, ...] = tuple(f"{level}_{name}" for level in LEVEL_NAMES for name in _LEVEL_FEATURES)
"""Names of the features, in the order of `HistoryFeatures.features_one`."""


@dataclass(slots=True)
class _Level:
    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
    size_n: float = 0.0
    size_mean: float = 0.0
    size_log_mean: float = 0.0
    size_m2: float = 0.0
    size_c2: float = 0.0
    recent: float = 0.0
    error2: float = 0.0
    last: float = nan
    cut: float = 0.0

    def learn(self, size: float, tokens_log: float, expected: float, cut: bool) -> None:
        kept = 1.0 - 1.0 / MEMORY
        self.n = self.n * kept + 1.0
        step = 1.0 / self.n
        delta = tokens_log - self.mean
        self.mean += delta * step
        self.m2 = self.m2 * kept + delta * (tokens_log - self.mean)
        self.recent += (tokens_log - self.recent) * max(FAST, step)
        self.cut += (cut - self.cut) * max(FAST / 4, step)
        self.error2 += ((tokens_log - expected) ** 2 - self.error2) * max(FAST / 4, step)
        self.last = tokens_log
        if not isnan(size):
            self._learn_size(size, tokens_log, kept)

    def _learn_size(self, size: float, tokens_log: float, kept: float) -> None:
        self.size_n = self.size_n * kept + 1.0
        dx = size - self.size_mean
        dy = tokens_log - self.size_log_mean
        self.size_mean += dx / self.size_n
        self.size_log_mean += dy / self.size_n
        self.size_m2 = self.size_m2 * kept + dx * (size - self.size_mean)
        self.size_c2 = self.size_c2 * kept + dx * (tokens_log - self.size_log_mean)


@dataclass(frozen=True, slots=True)
class _Belief:
    """What the levels down to one say together: a line, log tokens = mean + slope · (log size - size_mean)."""

    mean: float
    variance: float
    slope: float
    recent: float
    expected: float


_PRIOR = _Belief(PRIOR_LOG_TOKENS, PRIOR_VARIANCE, 0.0, PRIOR_LOG_TOKENS, PRIOR_LOG_TOKENS)


class HistoryFeatures:
    """History of all, of a model, an application, an application on a model and a user, each shrunk to the one above."""

    def __init__(self) -> None:
        self._levels: OrderedDict[Hashable, _Level] = OrderedDict()

    def features_one(self, app: str, model: str, user: str | None, size: float) -> tuple[list[float], float]:
        """Return the values of `HISTORY_FEATURES` and the anchor, in log tokens, as of now.

        Args:
            app: the application.
            model: the model asked for.
            user: the end user, if known.
            size: log size of the prompt; NaN where it has none.
        """
        values: list[float] = []
        belief = _PRIOR
        for key in _keys(app, model, user):
            level = None if key is None else self._levels.get(key)
            if level is None:
                values += (0.0, *[nan] * (len(_LEVEL_FEATURES) - 1))
            else:
                belief = _shrunk(level, belief, size)
                values += _values(level, belief, size)
        return values, belief.expected

    def learn_one(self, app: str, model: str, user: str | None, size: float, tokens: float, *, cut: bool = False) -> None:
        """Learn from an answer of so many tokens; `cut` tells that it ended at max_tokens."""
        tokens_log = log1p(max(0.0, tokens - 1.0))
        belief = _PRIOR
        for key in _keys(app, model, user):
            if key is not None:
                level = self._touch(key)
                belief = _shrunk(level, belief, size)
                level.learn(size, tokens_log, belief.expected, cut)

    def _touch(self, key: Hashable) -> _Level:
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = _Level()
            if len(self._levels) > MAX_LEVELS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(key)
        return level


def _keys(app: str, model: str, user: str | None) -> tuple[Hashable, ...]:
    return (
        "all",
        ("model", model),
        ("app", app),
        ("app_model", app, model),
        None if user is None else ("user", app, model, user),
    )


def _shrunk(level: _Level, above: _Belief, size: float) -> _Belief:
    weight = level.n / (level.n + SHRINKAGE)
    mean = above.mean + weight * (level.mean - above.mean)
    spread = level.m2 / level.n if level.n else 0.0
    variance = above.variance + weight * (spread - above.variance)
    slope = (level.size_c2 + SLOPE_SHRINKAGE * above.slope) / (level.size_m2 + SLOPE_SHRINKAGE)
    recent = above.recent + weight * (level.recent - above.recent)
    if isnan(size) or not level.size_n:
        line = mean
    else:
        line = level.size_log_mean + slope * (size - level.size_mean)
    return _Belief(mean, variance, slope, recent, above.expected + weight * (line - above.expected))


def _values(level: _Level, belief: _Belief, size: float) -> tuple[float, ...]:
    return (
        log1p(level.n),
        belief.mean,
        sqrt(max(0.0, belief.variance)),
        belief.recent - belief.mean,
        level.last - belief.mean,
        level.size_log_mean - level.size_mean if level.size_n else nan,
        belief.slope,
        sqrt(level.error2),
        belief.expected,
        level.cut,
    )
