"""Whom to believe about an application: the trained model, or its history alone.

A model trained on other applications may be wrong about a new one for hundreds of requests; the history's own
expectation is seldom far off after fifty. Both predict every answer, and per application the one with the smaller
pinball loss gains weight. Their quantiles are averaged, level by level.

Source: Cesa-Bianchi & Lugosi, Prediction, Learning, and Games (2006), ch. 2: exponentially weighted forecasters;
Ratcliff, Group reaction time distributions (1979), for averaging quantiles.
"""

from collections import OrderedDict
from collections.abc import Iterable
from math import exp

import numpy as np
from numpy.typing import NDArray

from gateway.scheduling.length import LEVELS

Floats = NDArray[np.float64]

MAX_APPS = 10_000
MAX_LOG_ODDS = 4.0
_LEVELS: Floats = np.array(LEVELS)


class Mixture:
    """Weights between two predictions, per application.

    Args:
        known: applications that the model was trained on; it starts as the one to believe about them.
        rate: of learning, in log odds per answer of which one alone was right.
        memory: share of the evidence that is kept from one answer to the next.
    """

    def __init__(self, known: Iterable[str] = (), *, rate: float = 0.5, memory: float = 0.995) -> None:
        self.rate = rate
        self.memory = memory
        self._log_odds = OrderedDict.fromkeys(list(known)[-MAX_APPS:], MAX_LOG_ODDS)

    def weight(self, app: str) -> float:
        """Return the model's weight (0 to 1) for an application; a new one's is a half."""
        return 1.0 / (1.0 + exp(-self._log_odds.get(app, 0.0)))

    def mix_one(self, app: str, model: Floats, history: Floats) -> Floats:
        """Return mixed log tokens (n_levels,) of two predictions (n_levels,)."""
        weight = self.weight(app)
        return weight * model + (1.0 - weight) * history

    def learn_one(self, app: str, model: Floats, history: Floats, tokens: float) -> None:
        """Learn from an answer of so many tokens, and what both (n_levels,) had predicted of it."""
        errors = np.log(max(1.0, tokens)) - np.stack([model, history])
        losses = np.maximum(_LEVELS * errors, (_LEVELS - 1.0) * errors).sum(axis=1)
        total = losses.sum()
        gain = (losses[1] - losses[0]) / total if total > 0 else 0.0
        odds = self.memory * self._log_odds.get(app, 0.0) + self.rate * float(gain)
        self._log_odds[app] = min(MAX_LOG_ODDS, max(-MAX_LOG_ODDS, odds))
        self._log_odds.move_to_end(app)
        if len(self._log_odds) > MAX_APPS:
            self._log_odds.popitem(last=False)
