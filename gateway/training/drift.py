"""Whether predictions have become worse than they were, seen outcome by outcome."""

from math import log

MIN_OUTCOMES = 200
"""Outcomes from which the ordinary error is known well enough."""

TOLERANCE = 0.1
"""Growth of the mean error that is let pass, as a share of it."""

THRESHOLD = 50.0
"""Excess error that is drift, in mean errors: 55 outcomes of twice the error, or 125 of one and a half times; without
drift about one false alarm in a million outcomes, were errors independent and as spread as their mean."""


class DriftDetector:
    """Page and Hinkley's test on |log(actual / predicted)|.

    The sum of what each error lies above the mean and the tolerance falls as long as nothing changes; drift is when it
    has risen far above its minimum.

    Source: Page, Continuous inspection schemes, Biometrika 41 (1954); Gama et al., A survey on concept drift
    adaptation, ACM Computing Surveys 46 (2014), section 3.2.

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
        """Note a prediction (median) and what came of it, in tokens per sequence."""
        error = abs(log(max(1.0, actual_tokens) / max(1.0, predicted_tokens)))
        self._seen += 1
        self._mean += (error - self._mean) / self._seen
        self._sum += error - (1.0 + TOLERANCE) * self._mean
        self._minimum = min(self._minimum, self._sum)
        risen = self._sum - self._minimum > THRESHOLD * self._mean
        self.drifted = self.drifted or (risen and self._seen >= MIN_OUTCOMES)
