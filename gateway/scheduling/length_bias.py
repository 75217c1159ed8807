"""How much longer answers come out than was predicted, over all of a model's: the scheduler's own check on predictions.

A predictor that is right on the whole leaves the factor at 1. One that has broken, or an engine whose model was changed
under its name, would make every memory test wrong in the same direction; the factor takes that out again.
"""

from dataclasses import dataclass
from math import exp

WINDOW = 200
"""Answers over which the factor is learned, exponentially weighted."""

PRIOR_ANSWERS = 20.0
"""As many answers stand in for 'no bias' in the beginning, one less with each that came."""

TOLERANCE = 1.25
"""Factors closer to 1 than this are noise and are not applied."""

LARGEST = 50.0

_KEEP = exp(-1.0 / WINDOW)


@dataclass(slots=True)
class LengthBias:
    """Tokens that came over tokens predicted.

    >>> bias = LengthBias()
    >>> for _ in range(300):
    ...     bias.learn_one(predicted_tokens=1000.0, output_tokens=100)
    >>> round(bias.factor, 2)
    0.1
    """

    _predicted: float = 0.0
    _came: float = 0.0
    _weight: float = 0.0

    @property
    def factor(self) -> float:
        """By how much predicted lengths are to be multiplied."""
        if not self._weight:
            return 1.0
        no_bias = max(0.0, PRIOR_ANSWERS - self._weight) * self._predicted / self._weight
        factor = (self._came + no_bias) / (self._predicted + no_bias)
        return min(LARGEST, max(1.0 / LARGEST, factor)) if not 1.0 / TOLERANCE < factor < TOLERANCE else 1.0

    def learn_one(self, predicted_tokens: float, output_tokens: float) -> None:
        """Learn from an answer that came to its end; `predicted_tokens` is what the predictor's mean was."""
        self._predicted = self._predicted * _KEEP + predicted_tokens
        self._came = self._came * _KEEP + output_tokens
        self._weight = self._weight * _KEEP + 1.0
