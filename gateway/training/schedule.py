"""When to train again: after a time, after a number of new requests, or when the error has grown.

Source: Page, Continuous inspection schemes, Biometrika 41 (1954); Gama et al., A survey on concept drift adaptation,
ACM Computing Surveys 46 (2014), section 3.2.
"""

from dataclasses import dataclass
from math import log
from typing import Literal

Reason = Literal["first", "time", "rows", "drift"]
"""Why a training is due."""

RETRY_S = 60.0
"""Wait after a failed training; it doubles with each further failure, up to `every_s`."""

MIN_OUTCOMES = 200
"""Outcomes that the drift detector needs before it reports drift."""

TOLERANCE = 0.1
"""Growth of the mean error that is not drift, as a share of it."""

THRESHOLD = 50.0
"""Excess error that is drift, in mean errors: 55 outcomes with twice the error, or 125 with one and a half times the
error. Without drift there is about one false alarm in a million outcomes, for independent errors that are as spread as
their mean."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to train.

    Args:
        every_s: train after this time, if there are new requests.
        after_rows: train after this number of new requests.
        min_rows: requests that the first model needs; a later training needs a tenth of them as new requests.
    """

    every_s: float
    after_rows: int
    min_rows: int


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts of the decision.

    Args:
        since_training_s: time since the last training ended, with any result; None if there was none.
        since_attempt_s: time since this process last started a training; None if it has not.
        failures: trainings that failed in a row.
        new_rows: requests after the last training's newest one.
        drifted: whether predictions have become worse since then.
    """

    since_training_s: float | None
    since_attempt_s: float | None
    failures: int
    new_rows: int
    drifted: bool


def reason_to_train(cadence: Cadence, now: Situation) -> Reason | None:
    """Return why a training is due; None if it is not.

    >>> cadence = Cadence(every_s=3600, after_rows=10_000, min_rows=1000)
    >>> reason_to_train(cadence, Situation(None, None, 0, new_rows=1000, drifted=False))
    'first'
    >>> reason_to_train(cadence, Situation(600.0, 600.0, 0, new_rows=300, drifted=True))
    'drift'
    """
    if now.since_attempt_s is not None and now.since_attempt_s < _backoff_s(cadence, now.failures):
        return None
    if now.since_training_s is None:
        return "first" if now.new_rows >= cadence.min_rows else None
    if now.new_rows >= cadence.after_rows:
        return "rows"
    if now.new_rows < cadence.min_rows // 10:
        return None
    if now.drifted:
        return "drift"
    return "time" if now.since_training_s >= cadence.every_s else None


def _backoff_s(cadence: Cadence, failures: int) -> float:
    return min(RETRY_S * 2.0 ** min(failures - 1, 20), cadence.every_s) if failures else 0.0


class DriftDetector:
    """Page and Hinkley's test on |log(actual / predicted)|: whether predictions have become worse.

    Each error adds its distance from the mean error and the tolerance to a sum. The sum falls as long as nothing
    changes; drift is a sum far above its minimum.

    >>> detector = DriftDetector()
    >>> for _ in range(1000):
    ...     detector.learn_one(100, 120)
    >>> detector.drifted
    False
    >>> for _ in range(100):
    ...     detector.learn_one(100, 360)
    >>> detector.drifted
    True
    """

    def __init__(self) -> None:
        self.drifted = False
        self._seen = 0
        self._mean = 0.0
        self._sum = 0.0
        self._minimum = 0.0

    def learn_one(self, predicted_tokens: float, actual_tokens: float) -> None:
        """Record a prediction (median) and the actual tokens, per sequence."""
        error = abs(log(max(1.0, actual_tokens) / max(1.0, predicted_tokens)))
        self._seen += 1
        self._mean += (error - self._mean) / self._seen
        self._sum += error - (1.0 + TOLERANCE) * self._mean
        self._minimum = min(self._minimum, self._sum)
        risen = self._sum - self._minimum > THRESHOLD * self._mean
        self.drifted = self.drifted or (risen and self._seen >= MIN_OUTCOMES)
