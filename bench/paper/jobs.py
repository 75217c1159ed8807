"""The paper's requests: past ones with forecasts, at most 1024 tokens long either way, with Poisson arrivals."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import cycle, islice
from math import exp
from statistics import NormalDist

from bench.paper.testbed import MAX_TOKENS, MODEL, Job
from gateway.scheduling.length import LEVELS, LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.simulation.workload import BYTES_PER_TOKEN, prompt_tokens
from gateway.training.rows import PastRow

NOISE = 0.25
"""Standard deviation of the error of a noisy length's logarithm."""

_SCORES = tuple(NormalDist().inv_cdf(level) for level in LEVELS)
_NEVER_S = 1e9


class Knowledge(StrEnum):
    """Where predicted lengths come from. The three show how much depends on the prediction.

    `TRAINED` is the predictor, trained on rows that are not simulated. `NOISY` is the true length times a lognormal
    error. `TRUE` is the true length.
    """

    TRAINED = "trained"
    NOISY = "noisy"
    TRUE = "true"


@dataclass(frozen=True, slots=True)
class Sample:
    """A request to draw. `prompt_tokens` counts instruction and input."""

    prompt_tokens: int
    output_tokens: int
    length: LengthQuantiles


def samples(rows: Sequence[PastRow], forecasts: Sequence[LengthQuantiles] | None = None) -> list[Sample]:
    """Return samples of rows. Rows with longer prompts are left out, and longer answers are cut.

    Args:
        rows: past requests.
        forecasts: predicted length of each row's answer; None takes the true lengths.

    Raises:
        ValueError: no prompt is short enough.
    """
    lengths = [_certain(row.output_tokens) for row in rows] if forecasts is None else forecasts
    taken = [
        Sample(tokens, min(row.output_tokens, MAX_TOKENS), replace(length, cap=MAX_TOKENS))
        for row, length in zip(rows, lengths, strict=True)
        if (tokens := prompt_tokens(row) + _instruction_tokens(row)) <= MAX_TOKENS
    ]
    if not taken:
        raise ValueError(f"no prompt has {MAX_TOKENS} tokens or fewer")
    return taken


def with_lengths(taken: Sequence[Sample], knowledge: Knowledge, seed: int = 0) -> list[Sample]:
    """Return the samples with other predicted lengths."""
    chance = random.Random(seed)
    match knowledge:
        case Knowledge.TRAINED:
            return list(taken)
        case Knowledge.NOISY:
            return [replace(one, length=_noisy(one.output_tokens, chance)) for one in taken]
        case Knowledge.TRUE:
            return [replace(one, length=_certain(one.output_tokens)) for one in taken]


def poisson_jobs(taken: Sequence[Sample], *, rate: float, count: int, seed: int = 0) -> list[Job]:
    """Draw jobs that arrive at `rate` a second. No sample is drawn twice before all were drawn."""
    chance = random.Random(seed)
    order = chance.sample(range(len(taken)), len(taken))
    jobs, now = [], 0.0
    for number, index in enumerate(islice(cycle(order), count)):
        one = taken[index]
        request = Request(str(number), MODEL, one.prompt_tokens, one.length, now, now + _NEVER_S)
        jobs.append(Job(request, one.output_tokens))
        now += chance.expovariate(rate)
    return jobs


def _instruction_tokens(row: PastRow) -> int:
    return round(len((row.system or "").encode()) / BYTES_PER_TOKEN)


def _noisy(output_tokens: int, chance: random.Random) -> LengthQuantiles:
    median = output_tokens * exp(chance.gauss(0.0, NOISE))
    return LengthQuantiles.of(tuple(median * exp(NOISE * score) for score in _SCORES), cap=MAX_TOKENS)


def _certain(output_tokens: int) -> LengthQuantiles:
    return LengthQuantiles.of((float(output_tokens),) * len(LEVELS), cap=MAX_TOKENS)
