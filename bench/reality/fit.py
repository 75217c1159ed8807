"""Fits the four constants of the step model to measured steps."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from backends.simulator.engine import StepTime

Floats = NDArray[np.float64]

N_CONSTANTS = 4
PASSES = 10
SMALLEST_SHARE = 1e-3
"""Lower limit of a predicted time, as a share of the shortest sample, so that no weight is infinite."""


class FitError(ValueError):
    """The samples do not determine a step model."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Work and duration of consecutive steps.

    Attributes:
        steps: number of steps.
        running: running sequences, summed over the steps.
        kv_tokens: KV entries read, summed over steps and sequences.
        prefill_tokens: tokens of the prompts that were computed.
        seconds: duration of all steps.
    """

    steps: int
    running: float
    kv_tokens: float
    prefill_tokens: float
    seconds: float

    @property
    def work(self) -> tuple[float, float, float, float]:
        """Quantities that the constants a, b, c and d multiply."""
        return (float(self.steps), self.running, self.kv_tokens, self.prefill_tokens)

    def predicted_s(self, step_time: StepTime) -> float:
        """Return the seconds that the step model predicts.

        >>> Sample(2, 4.0, 100.0, 8.0, 1.0).predicted_s(StepTime(a=0.5, b=0.25, c=0.0, d=0.125))
        3.0
        """
        return sum(
            price * n for price, n in zip((step_time.a, step_time.b, step_time.c, step_time.d), self.work, strict=True)
        )


def fit_step_time(samples: Sequence[Sample]) -> StepTime:
    """Fit the constants to samples by non-negative least squares.

    The noise grows with the duration, so each sample is weighted by the inverse of its predicted duration; otherwise a
    few long samples would decide the fit. The measured duration cannot be the weight: disturbed samples would then
    count less, and the fit would be faster than the engine.

    Raises:
        FitError: there are fewer samples than constants, or a sample has no duration.

    Source: Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23 (non-negative least squares); Carroll
    and Ruppert, Transformation and Weighting in Regression, 1988, section 2.1 (weights from the fit).
    """
    if len(samples) < N_CONSTANTS:
        raise FitError(f"{len(samples)} samples for {N_CONSTANTS} constants")
    seconds = np.array([sample.seconds for sample in samples])
    if not (seconds > 0).all():
        raise FitError("a sample took no time")
    work = np.array([sample.work for sample in samples])
    expected = seconds
    for _ in range(PASSES):
        prices = _prices(work / expected[:, None], seconds / expected)
        expected = np.maximum(work @ prices, seconds.min() * SMALLEST_SHARE)
    return StepTime(*prices.tolist())


def _prices(work: Floats, seconds: Floats) -> Floats:
    """Return the constants, (4,). Columns are scaled because the constants differ by orders of magnitude."""
    scale = work.max(axis=0)
    scale[scale == 0] = 1.0
    prices, _ = nnls(work / scale, seconds)
    return np.asarray(prices / scale)


def scaled(step_time: StepTime, factor: float) -> StepTime:
    """Return the step model of an engine that is slower by a factor.

    >>> scaled(StepTime(a=1.0, b=2.0, c=3.0, d=4.0), 2.0)
    StepTime(a=2.0, b=4.0, c=6.0, d=8.0)
    """
    return StepTime(*(factor * price for price in astuple(step_time)))


def errors(samples: Sequence[Sample], step_time: StepTime) -> Floats:
    """Return the relative errors, (n,): predicted / measured - 1."""
    return np.array([sample.predicted_s(step_time) / sample.seconds - 1.0 for sample in samples])
