"""What is asked of a training, and what comes of it: values that cross from process to process."""

from typing import Any, Literal

import msgspec

Outcome = Literal["promoted", "rejected", "too_few_rows", "busy"]
"""promoted: the new model serves. rejected: it was not better. busy: another process trains."""


class TrainingOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What to train on, and with how much of the machine."""

    database_url: str
    features_version: str
    window_rows: int
    min_rows: int
    threads: int = 1


class TrainingReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a training came to.

    `rows` were in the window; where they are too few, `needed` is how many it takes. `metrics` are the challenger's on
    the newest rows, `champion` those of what it had to beat, which `against` names.
    """

    outcome: Outcome
    rows: int = 0
    needed: int = 0
    version: int | None = None
    against: str | None = None
    metrics: dict[str, Any] = {}
    champion: dict[str, Any] = {}
    seconds: float = 0.0
