"""What arrives in a simulation: requests with their true lengths, drawn from past ones."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from gateway.prediction.history import Caller
from gateway.simulation.times import Pattern, arrival_times
from gateway.training.rows import PastRow

BYTES_PER_TOKEN = 4.0
"""For a prompt of which only the text is known; the engine's count is as good as any here."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `output_tokens` is the truth: for the engine, and for who is clairvoyant.

    `row` is the number of the past request that it repeats, among those that have an answer.
    """

    id: str
    caller: Caller
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    row: int = 0


def answered(rows: Iterable[PastRow]) -> list[PastRow]:
    """Leave out the rows without a single output token, since nothing of them can be simulated."""
    return [row for row in rows if row.output_tokens]


def arrivals(
    rows: Iterable[PastRow], *, count: int | None, rate: float | None, seed: int, pattern: Pattern | None = None
) -> list[Arrival]:
    """Make arrivals of rows, of those that have an answer.

    Args:
        rows: past requests.
        count: how many; None takes each once. Beyond the rows that there are, they come again. Without times it is a
            random draw, with times the first ones.
        rate: requests a second; None keeps the rows' times.
        seed: of draw and gaps.
        pattern: None follows the rows' times where they have any, and is Poisson where they have not.

    Raises:
        ValueError: there are no rows, or they have no times and no rate is given.
    """
    past = answered(rows)
    if not past:
        raise ValueError("no row has an answer")
    timed = all(row.t is not None for row in past)
    if rate is None and not timed:
        raise ValueError("rate: the rows have no times, so one is needed")
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
    """Return the engine's count of a prompt, or an estimate from its text."""
    text_bytes = len((row.text or "").encode(errors="replace"))
    return row.input_tokens or max(1, round(text_bytes / BYTES_PER_TOKEN))


def without_texts(rows: Iterable[PastRow]) -> list[PastRow]:
    """Return rows that simulate alike and weigh little."""
    return [
        PastRow(
            app=row.app,
            user=row.user,
            model=row.model,
            t=row.t,
            input_tokens=prompt_tokens(row),
            output_tokens=row.output_tokens,
        )
        for row in rows
    ]


def _draws(size: int, chance: random.Random) -> "Iterable[int]":
    """Yield numbers below `size` without end, all of them before any comes again."""
    while True:
        yield from chance.sample(range(size), size)


def _arrival(request_id: str, index: int, row: PastRow, arrival_s: float) -> Arrival:
    caller = Caller(row.app or "", row.model or "", row.user)
    return Arrival(request_id, caller, arrival_s, prompt_tokens(row), row.output_tokens, index)
