"""Sources of predicted answer lengths, from the true length to a random one."""

import random
from collections.abc import Sequence
from typing import Protocol

from gateway.prediction.answer_memory import AnswerMemory, PastAnswer
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.simulation.workload import Arrival


class Lengths(Protocol):
    """Predicts how long answers will be."""

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Return the predicted length of the answer to a request that has just arrived."""
        ...

    def learn(self, arrival: Arrival) -> None:
        """Learn the length of an answer that has ended."""
        ...


class LearnedLengths:
    """Quantiles of earlier answers, learned during the run: what a gateway knows that was just started."""

    def __init__(self) -> None:
        self._memory = AnswerMemory()

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Predict from the answers that have ended so far."""
        return self._memory.predict_one(arrival.key).length

    def learn(self, arrival: Arrival) -> None:
        """Learn one length."""
        self._memory.learn_one(PastAnswer(arrival.key, arrival.output_tokens))


class ForecastLengths:
    """Forecasts that were made before the run. Every policy gets the same ones.

    Args:
        forecasts: predicted length of each row.
    """

    def __init__(self, forecasts: Sequence[LengthQuantiles]) -> None:
        self._forecasts = forecasts

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Return the forecast of the arrival's row."""
        return self._forecasts[arrival.row]

    def learn(self, arrival: Arrival) -> None:
        """Do nothing."""


class ScaledLengths:
    """The true length times a factor. With factor 1 every prediction is right."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Return the scaled length with no uncertainty."""
        return _certain(self._factor * arrival.output_tokens)

    def learn(self, arrival: Arrival) -> None:
        """Do nothing."""


class RandomLengths:
    """The length of another request's answer with no uncertainty: right on average, and useless for one request.

    Args:
        lengths: the lengths to draw from.
        seed: of the draw. A request gets the same length in every run.
    """

    def __init__(self, lengths: Sequence[int], seed: int = 0) -> None:
        self._lengths = lengths
        self._seed = seed

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Draw a length."""
        return _certain(random.Random(f"{self._seed}/{arrival.id}").choice(self._lengths))

    def learn(self, arrival: Arrival) -> None:
        """Do nothing."""


def _certain(tokens: float) -> LengthQuantiles:
    return LengthQuantiles.of((float(tokens),) * len(LEVELS))
