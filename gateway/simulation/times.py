"""Times of arrivals: Poisson, as in a trace, or with half of them in a burst."""

import random
from enum import StrEnum

BURST_SHARE, BURST_REQUESTS = 0.05, 0.5
"""Half of the requests arrive in a twentieth of the time."""


class Pattern(StrEnum):
    """How arrivals are spread over time."""

    POISSON = "poisson"
    TRACE = "trace"
    BURST = "burst"


def arrival_times(
    count: int,
    rate: float | None,
    chance: random.Random,
    *,
    pattern: Pattern | None = None,
    own_times: list[float] | None = None,
) -> list[float]:
    """Return `count` times in seconds, in order. The first one is 0 or soon after.

    Args:
        count: number of times.
        rate: mean requests a second; None keeps `own_times` as they are.
        chance: source of randomness.
        pattern: None follows `own_times` if they are given, and is Poisson otherwise.
        own_times: (count,) times of the rows. Where a time is lower than the one before it, the rows begin again.

    Raises:
        ValueError: the pattern needs `own_times` or a rate, and it is missing.
    """
    if pattern is None:
        pattern = Pattern.POISSON if own_times is None else Pattern.TRACE
    if pattern is Pattern.TRACE:
        if own_times is None:
            raise ValueError("pattern: 'trace' needs rows with times")
        return _scaled(_unrolled(own_times), rate)
    if rate is None:
        raise ValueError(f"rate: the pattern '{pattern}' needs a rate")
    return _poisson(count, rate, chance) if pattern is Pattern.POISSON else _burst(count, rate, chance)


def _unrolled(times: list[float]) -> list[float]:
    """Return times that never decrease. Each new round of the rows follows the last one after the mean gap."""
    rounds = next((i for i in range(1, len(times)) if times[i] < times[i - 1]), len(times))
    gap = (times[rounds - 1] - times[0]) / max(1, rounds - 1)
    unrolled: list[float] = []
    offset = 0.0
    for i, t in enumerate(times):
        if i and t < times[i - 1]:
            offset = unrolled[-1] + gap - t
        unrolled.append(t + offset)
    return unrolled


def _scaled(times: list[float], rate: float | None) -> list[float]:
    """Return times from 0 on, stretched evenly so that the mean rate is `rate`. The burstiness does not change."""
    span_s = times[-1] - times[0]
    factor = 1.0 if rate is None or not span_s else (len(times) - 1) / rate / span_s
    return [(t - times[0]) * factor for t in times]


def _poisson(count: int, rate: float, chance: random.Random) -> list[float]:
    times, t = [], 0.0
    for _ in range(count):
        times.append(t)
        t += chance.expovariate(rate)
    return times


def _burst(count: int, rate: float, chance: random.Random) -> list[float]:
    """Return Poisson arrivals whose rate is ten times the mean in the middle, and half the mean before and after.

    Given the number of Poisson arrivals in an interval of constant rate, their times are uniform in it.
    """
    whole_s = count / rate
    burst_s = BURST_SHARE * whole_s
    start_s = (whole_s - burst_s) / 2
    times = []
    for _ in range(count):
        if chance.random() < BURST_REQUESTS:
            times.append(start_s + chance.random() * burst_s)
        else:
            t = chance.random() * (whole_s - burst_s)
            times.append(t + burst_s if t > start_s else t)
    return sorted(times)
