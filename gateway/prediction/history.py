"""The predictor that needs no training: how long this user's, application's and model's answers were.

A user's few answers say little alone, so each level is shrunk towards the next: the user's histogram towards the
application's, that towards the model's, towards all answers, towards a documented prior. `m` observations of its own
weigh as much as what is above: the predictive distribution of a Dirichlet process whose base measure is the level
above, with concentration `m`.

Source: Teh et al., Hierarchical Dirichlet Processes, JASA 101 (2006), for the hierarchy.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from math import exp

import numpy as np

from gateway.prediction.histogram import N_BINS, Floats, bin_of, lognormal_shares, quantiles
from gateway.scheduling.length import LengthQuantiles

PRIOR_MEDIAN_TOKENS = 115.0
PRIOR_SIGMA = 1.4
"""Before anything is known: the median of Azure's 2023 conversation trace (CC BY 4.0, Patel et al., Splitwise), spread
widely enough to hold one-word answers and essays."""

CONCENTRATION = 6.0
"""m: observations at which a level's own answers weigh as much as the level above."""

MEMORY = 1000.0
"""Observations after which an answer's weight has fallen to 1/e: answers change when prompts and models do."""

MAX_LEVELS = 100_000
"""Histograms kept; the ones longest unused go first, and come back from nothing."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for what; the keys under which answers are remembered."""

    app: str
    model: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """An answer's predicted length per sequence, and the most specific level that had a say of weight."""

    length: LengthQuantiles
    source: str


@dataclass(slots=True)
class _Level:
    counts: Floats = field(default_factory=lambda: np.zeros(N_BINS))
    total: float = 0.0

    def add(self, index: int, weight: float) -> None:
        self.counts[index] += weight
        self.total += weight

    def scale(self, factor: float) -> None:
        self.counts *= factor
        self.total *= factor

    def learn(self, index: int, weight: float) -> None:
        self.scale(exp(-weight / MEMORY))
        self.add(index, weight)

    def fit_into_memory(self) -> None:
        if self.total > MEMORY:
            self.scale(MEMORY / self.total)


class HistoryPredictor:
    """Quantiles from history, shrunk from user to application to model to all to the prior."""

    def __init__(self) -> None:
        self._levels: OrderedDict[Hashable, _Level] = OrderedDict()
        self._prior = lognormal_shares(PRIOR_MEDIAN_TOKENS, PRIOR_SIGMA)

    def predict_one(self, caller: Caller, max_tokens: int | None) -> Prediction:
        """Predict the length of the next answer, capped by `max_tokens`."""
        shares, source = self._prior, "prior"
        for name, key in reversed(_levels(caller)):
            level = self._levels.get(key)
            if level is not None:
                shares = (level.counts + CONCENTRATION * shares) / (level.total + CONCENTRATION)
                source = f"history:{name}" if level.total >= CONCENTRATION else source
        return Prediction(quantiles(shares, cap=max_tokens), source)

    def learn_one(self, caller: Caller, output_tokens: int, *, count: int = 1) -> None:
        """Learn from `count` answers of so many tokens each."""
        index = bin_of(output_tokens)
        for _, key in _levels(caller):
            self._touch(key).learn(index, float(count))

    def warm_up(self, rows: Iterable[tuple[Caller, int, int]]) -> None:
        """Learn from (caller, output tokens, count) rows in no order, as if they had come evenly mixed."""
        for caller, output_tokens, count in rows:
            index = bin_of(output_tokens)
            for _, key in _levels(caller):
                self._touch(key).add(index, float(count))
        for level in self._levels.values():
            level.fit_into_memory()

    def _touch(self, key: Hashable) -> _Level:
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = _Level()
            if len(self._levels) > MAX_LEVELS:
                self._levels.popitem(last=False)
        self._levels.move_to_end(key)
        return level


def _levels(caller: Caller) -> list[tuple[str, Hashable]]:
    """The caller's levels with their keys, most specific first."""
    levels: list[tuple[str, Hashable]] = [
        ("app", ("app", caller.app)),
        ("model", ("model", caller.model)),
        ("all", ("all",)),
    ]
    return levels if caller.user is None else [("user", ("user", caller.app, caller.user)), *levels]
