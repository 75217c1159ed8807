"""When requests arrive: evenly at random, as in a trace, or half of them in a burst."""

import random
from enum import StrEnum

BURST_SHARE, BURST_REQUESTS = 0.05, 0.5
"""Half of the requests come in a twentieth of the time."""


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
    """Return `count` times in seconds, in order, the first one at 0 or soon after.

    Args:
        count: how many.
        rate: requests a second in the mean; None keeps `own_times` as they are.
        chance: where the randomness comes from.
        pattern: None follows `own_times` where there are any, and is Poisson where there are none.
        own_times: (count,) the rows' own; where they go back, the rows begin again.

    Raises:
        ValueError: times are to be followed but there are none, or there is no rate to draw them by.
    """
    if pattern is None:
        pattern = Pattern.POISSON if own_times is None else Pattern.TRACE
    if pattern is Pattern.TRACE:
        if own_times is None:
            raise ValueError("pattern: the rows have no times to follow")
        return _scaled(_unrolled(own_times), rate)
    if rate is None:
        raise ValueError(f"rate: {pattern} arrivals need one")
    return _poisson(count, rate, chance) if pattern is Pattern.POISSON else _burst(count, rate, chance)


def _unrolled(times: list[float]) -> list[float]:
    """Times that never go back: where they do, the next round follows the last at the mean gap."""
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
    """Times from zero on, stretched evenly so that the mean rate is `rate`; burstiness stays as it is."""
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
    """Poisson arrivals whose rate is ten times the mean in the middle, and half of it before and after.

    Given how many fall into a stretch of constant rate, Poisson arrivals are uniform in it.
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
