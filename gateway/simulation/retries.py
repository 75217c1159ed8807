"""Whether dropped clients were told the truth about when to come back."""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from statistics import fmean, median

from gateway.simulation.run import Outcome, RequestTrace


@dataclass(frozen=True, slots=True)
class RetryTruth:
    """What came of the times that drops were given; None without drops.

    `room`: the share for which the queue had room then, though nobody else had held back. `passed`: the share for which
    as many requests as were waiting had left the queue by then. `ratio`: the median of the time told over the time
    until so many had left; an estimate that is right in the middle has 1, and half of its drops passed.
    """

    mean_s: float | None = None
    room: float | None = None
    passed: float | None = None
    ratio: float | None = None


def retry_truth(dropped: list[RequestTrace], outcome: Outcome, max_queue: int | None) -> RetryTruth:
    """Compare each drop's `retry_after_s` with what the queue did in that time.

    Args:
        dropped: the drops.
        outcome: of the run.
        max_queue: bound of the queue; without one there is nothing to compare.
    """
    if not dropped or max_queue is None:
        return RetryTruth()
    changed_s = [at_s for at_s, _ in outcome.depths]
    left_s = sorted(flight.dispatched_s for flight in outcome.flights if flight.dispatched_s < inf)
    room = [_depth(outcome, changed_s, flight.dropped_s + flight.retry_after_s) < max_queue for flight in dropped]
    ratios = []
    for flight in dropped:
        last = bisect_right(left_s, flight.dropped_s) + _depth(outcome, changed_s, flight.dropped_s) - 1
        needed_s = left_s[last] - flight.dropped_s if 0 <= last < len(left_s) else inf
        ratios.append(flight.retry_after_s / needed_s if needed_s > 0.0 else inf)
    return RetryTruth(
        mean_s=fmean(flight.retry_after_s for flight in dropped),
        room=fmean(room),
        passed=fmean(ratio >= 1.0 for ratio in ratios),
        ratio=median(ratios),
    )


def _depth(outcome: Outcome, changed_s: list[float], at_s: float) -> int:
    """Requests in the queue at a time, which is none after the last change."""
    index = bisect_right(changed_s, at_s) - 1
    return outcome.depths[index][1] if index >= 0 else 0
