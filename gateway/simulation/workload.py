"""Arrivals of a simulation: requests with their true answer lengths, drawn from past requests."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from gateway.prediction.prediction_input import HistoryKey
from gateway.simulation.times import Pattern, arrival_times
from gateway.training.rows import PastRow

BYTES_PER_TOKEN = 4.0
"""Estimates the tokens of a prompt of which only the text is known."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request.

    Attributes:
        caller: application, model and user.
        arrival_s: seconds since the start of the simulation.
        output_tokens: true length of the answer. Only the engine and true lengths use it.
        row: index of the past request that this one repeats, among those with an answer.
    """

    id: str
    key: HistoryKey
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    row: int = 0


def answered(rows: Iterable[PastRow]) -> list[PastRow]:
    """Return the rows that have output tokens. The others cannot be simulated."""
    return [row for row in rows if row.output_tokens]


def arrivals(
    rows: Iterable[PastRow], *, count: int | None, rate: float | None, seed: int, pattern: Pattern | None = None
) -> list[Arrival]:
    """Return arrivals that repeat past requests.

    Args:
        rows: past requests. Those without an answer are left out.
        count: number of arrivals; None takes each row once. If there are fewer rows, they are repeated. Rows with times
            are taken from the first on; others are drawn at random.
        rate: requests a second; None keeps the rows' times.
        seed: for the draw and the gaps.
        pattern: None follows the rows' times if they have any, and is Poisson otherwise.

    Raises:
        ValueError: there are no rows, or they have no times and no rate is given.
    """
    past = answered(rows)
    if not past:
        raise ValueError("no row has an answer")
    timed = all(row.t is not None for row in past)
    if rate is None and not timed:
        raise ValueError("rate: the rows have no times, so a rate is needed")
    chance = random.Random(seed)
    count = len(past) if count is None else count
    if timed:
        order = sorted(range(len(past)), key=lambda i: past[i].t or 0.0)
        chosen = [order[i % len(order)] for i in range(count)]
    else:
        chosen = list(islice(_draws(len(past), chance), count))
    follows_times = timed and pattern in {None, Pattern.TRACE}
    own_times = [past[i].t or 0.0 for i in chosen] if follows_times else None
    times = arrival_times(count, rate, chance, pattern=pattern, own_times=own_times)
    return [_arrival(str(n), i, past[i], t) for n, (i, t) in enumerate(zip(chosen, times, strict=True))]


def prompt_tokens(row: PastRow) -> int:
    """Return the tokens of a prompt as counted, or an estimate from its text."""
    text_bytes = len((row.text or "").encode(errors="replace"))
    return row.input_tokens or max(1, round(text_bytes / BYTES_PER_TOKEN))


def _draws(size: int, chance: random.Random) -> "Iterable[int]":
    """Yield numbers below `size` without end. None is repeated before all others were drawn."""
    while True:
        yield from chance.sample(range(size), size)


def _arrival(request_id: str, index: int, row: PastRow, arrival_s: float) -> Arrival:
    key = HistoryKey(row.app or "", row.model or "", user=row.user)
    return Arrival(request_id, key, arrival_s, prompt_tokens(row), row.output_tokens, index)
