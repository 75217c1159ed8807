"""The paper's requests: past ones with their forecasts, at most 1024 tokens long either way, arriving at random."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle, islice
from math import exp
from statistics import NormalDist

from bench.paper.testbed import LONGEST_TOKENS, MODEL, Job
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.simulation.workload import BYTES_PER_TOKEN, prompt_tokens
from gateway.training.rows import PastRow

NOISE = 0.25
"""Standard deviation of the logarithm of a noisy length's error."""

_SCORES = tuple(NormalDist().inv_cdf(level) for level in LEVELS)
_FAR_S = 1e9


class Knowledge(StrEnum):
    """Where predicted lengths come from.

    `TRAINED` is the predictor, trained on rows that are not simulated. `NOISY` is the truth times a lognormal error,
    and `TRUE` the truth: how much hangs on the prediction.
    """

    TRAINED = "trained"
    NOISY = "noisy"
    TRUE = "true"


@dataclass(frozen=True, slots=True)
class Sample:
    """A request to draw. `prompt_tokens` count instruction and input."""

    prompt_tokens: int
    output_tokens: int
    length: LengthQuantiles


def samples(rows: Sequence[PastRow], forecasts: Sequence[LengthQuantiles] | None = None) -> list[Sample]:
    """Take rows with their forecasts, or with the truth; longer prompts are left out, longer answers are cut.

    Raises:
        ValueError: no prompt is short enough.
    """
    known = [_certain(row.output_tokens) for row in rows] if forecasts is None else forecasts
    taken = [
        Sample(tokens, min(row.output_tokens, LONGEST_TOKENS), replace(forecast, cap=LONGEST_TOKENS))
        for row, forecast in zip(rows, known, strict=True)
        if (tokens := prompt_tokens(row) + _instruction_tokens(row)) <= LONGEST_TOKENS
    ]
    if not taken:
        raise ValueError(f"no prompt has {LONGEST_TOKENS} tokens or fewer")
    return taken


def knowing(taken: Sequence[Sample], knowledge: Knowledge, seed: int = 0) -> list[Sample]:
    """Return the samples with another forecast of their lengths."""
    chance = random.Random(seed)
    match knowledge:
        case Knowledge.TRAINED:
            return list(taken)
        case Knowledge.NOISY:
            return [replace(one, length=_noisy(one.output_tokens, chance)) for one in taken]
        case Knowledge.TRUE:
            return [replace(one, length=_certain(one.output_tokens)) for one in taken]


def poisson_jobs(taken: Sequence[Sample], *, rate: float, count: int, seed: int = 0) -> list[Job]:
    """Draw jobs that arrive `rate` a second; none is drawn twice before all were drawn."""
    chance = random.Random(seed)
    order = chance.sample(range(len(taken)), len(taken))
    jobs, now = [], 0.0
    for number, index in enumerate(islice(cycle(order), count)):
        one = taken[index]
        request = Request(str(number), MODEL, one.prompt_tokens, one.length, now, now + _FAR_S)
        jobs.append(Job(request, one.output_tokens))
        now += chance.expovariate(rate)
    return jobs


def _instruction_tokens(row: PastRow) -> int:
    return round(len((row.system or "").encode()) / BYTES_PER_TOKEN)


def _noisy(output_tokens: int, chance: random.Random) -> LengthQuantiles:
    median = output_tokens * exp(chance.gauss(0.0, NOISE))
    return LengthQuantiles.of(tuple(median * exp(NOISE * score) for score in _SCORES), cap=LONGEST_TOKENS)


def _certain(output_tokens: int) -> LengthQuantiles:
    return LengthQuantiles.of((float(output_tokens),) * len(LEVELS), cap=LONGEST_TOKENS)
