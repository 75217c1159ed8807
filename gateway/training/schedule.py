"""When to train again, as a pure decision: after a time, after so many new requests, or when the error has grown."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal["first", "time", "rows", "drift"]
"""Why a training is due."""

RETRY_S = 60.0
"""Wait after a training that failed; doubled with each further failure, up to `every_s`."""


@dataclass(frozen=True, slots=True)
class Cadence:
    """How often to train.

    Args:
        every_s: after this time, if anything new was seen.
        after_rows: after so many new requests.
        min_rows: requests that the first model needs; a tenth of it, new ones, makes a later training worth its time.
    """

    every_s: float
    after_rows: int
    min_rows: int


@dataclass(frozen=True, slots=True)
class Situation:
    """What the decision is made from.

    Args:
        since_training_s: since the last training ended, whatever came of it; None if there was none.
        since_attempt_s: since this process last started one; None if it has not.
        failures: trainings that failed in a row.
        new_rows: requests that the last training has not seen.
        drifted: whether the predictions have become worse since.
    """

    since_training_s: float | None
    since_attempt_s: float | None
    failures: int
    new_rows: int
    drifted: bool


def reason_to_train(cadence: Cadence, now: Situation) -> Reason | None:
    """Say why a training is due; None if it is not.

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
