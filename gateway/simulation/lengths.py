"""Who says how long answers will be, from the truth to plain nonsense."""

import random
from collections.abc import Sequence
from typing import Protocol

from gateway.prediction.history import HistoryPredictor
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.simulation.workload import Arrival


class Lengths(Protocol):
    """Who says how long answers will be."""

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Predict an answer's length when its request arrives."""
        ...

    def learn(self, arrival: Arrival) -> None:
        """Learn an answer's length when it is over."""
        ...


class LearnedLengths:
    """History's quantiles, learned as the run goes: what a gateway that was just started knows."""

    def __init__(self) -> None:
        self._history = HistoryPredictor()

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Predict from what is over by now."""
        return self._history.predict_one(arrival.caller, None).length

    def learn(self, arrival: Arrival) -> None:
        """Learn one length."""
        self._history.learn_one(arrival.caller, arrival.output_tokens)


class ForecastLengths:
    """Forecasts made before the run, by row: every policy is given the same ones.

    Args:
        forecasts: of each row that can arrive.
    """

    def __init__(self, forecasts: Sequence[LengthQuantiles]) -> None:
        self._forecasts = forecasts

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Look it up."""
        return self._forecasts[arrival.row]

    def learn(self, arrival: Arrival) -> None:
        """Stay as it is."""


class ScaledLengths:
    """The truth times a factor: with 1 a clairvoyant, with 10 or 0.1 a predictor that is wrong and sure of it."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Tell the truth, scaled."""
        return _certain(self._factor * arrival.output_tokens)

    def learn(self, arrival: Arrival) -> None:
        """Stay as it is."""


class TrueLengths(ScaledLengths):
    """The truth: what a clairvoyant would do with the same policy."""

    def __init__(self) -> None:
        super().__init__(1.0)


class RandomLengths:
    """Some other request's length, with certainty: right on the average and of no use.

    Args:
        lengths: to draw from.
        seed: of the draw; a request gets the same length in every run.
    """

    def __init__(self, lengths: Sequence[int], seed: int = 0) -> None:
        self._lengths = lengths
        self._seed = seed

    def predict(self, arrival: Arrival) -> LengthQuantiles:
        """Draw one."""
        return _certain(random.Random(f"{self._seed}/{arrival.id}").choice(self._lengths))

    def learn(self, arrival: Arrival) -> None:
        """Stay as it is."""


def _certain(tokens: float) -> LengthQuantiles:
    return LengthQuantiles.of((float(tokens),) * len(LEVELS))
