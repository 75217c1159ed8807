"""What arrives in a simulation, and when."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from gateway.prediction.history import Caller
from gateway.training.rows import PastRow

BYTES_PER_TOKEN = 4.0
"""For a prompt of which only the text is known; the engine's count is as good as any here."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `output_tokens` is the truth: for the engine, and for who is clairvoyant."""

    id: str
    caller: Caller
    arrival_s: float
    prompt_tokens: int
    output_tokens: int


def arrivals(rows: Iterable[PastRow], *, count: int | None, rate: float | None, seed: int) -> list[Arrival]:
    """Make arrivals of rows; those without a single output token are left out, since nothing of them can be simulated.

    Args:
        rows: past requests.
        count: how many at most; the first ones where the rows have times, else a random draw.
        rate: requests a second: Poisson where the rows have no times, else their times are scaled to it.
        seed: of draw and gaps.

    Raises:
        ValueError: the rows have no times and no rate is given.
    """
    answered = [row for row in rows if row.output_tokens]
    timed = all(row.t is not None for row in answered)
    if not timed and rate is None:
        raise ValueError("rate: the rows have no times, so one is needed")
    chance = random.Random(seed)
    if timed:
        chosen = sorted(answered, key=lambda row: row.t or 0.0)[:count]
        times = _scaled([row.t or 0.0 for row in chosen], rate)
    else:
        chosen = answered if count is None or count >= len(answered) else chance.sample(answered, count)
        times = list(islice(_poisson(rate or 1.0, chance), len(chosen)))
    return [_arrival(str(i), row, t) for i, (row, t) in enumerate(zip(chosen, times, strict=True))]


def _arrival(request_id: str, row: PastRow, arrival_s: float) -> Arrival:
    text_bytes = len((row.text or "").encode(errors="replace"))
    prompt_tokens = row.input_tokens or max(1, round(text_bytes / BYTES_PER_TOKEN))
    caller = Caller(row.app or "", row.model or "", row.user)
    return Arrival(request_id, caller, arrival_s, prompt_tokens, row.output_tokens)


def _scaled(times: list[float], rate: float | None) -> list[float]:
    """Times from zero on, stretched evenly so that the mean rate is `rate`; burstiness stays as it is."""
    if not times:
        return []
    span_s = times[-1] - times[0]
    factor = 1.0 if rate is None or not span_s else (len(times) - 1) / rate / span_s
    return [(t - times[0]) * factor for t in times]


def _poisson(rate: float, chance: random.Random) -> Iterator[float]:
    t = 0.0
    while True:
        yield t
        t += chance.expovariate(rate)
