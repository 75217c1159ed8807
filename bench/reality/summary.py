"""Figures of a run, and ratios between runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """One answered request: times of its arrival, first and last token, and the number of tokens."""

    arrival_s: float
    first_s: float
    done_s: float
    tokens: int


class Figures(msgspec.Struct, frozen=True):
    """One run, measured or simulated. Times are end to end, in seconds.

    `loaded_tok_per_s` counts up to the last arrival, because later tokens depend on the length of the last answers.
    """

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    ttft_mean_s: float
    req_per_s: float
    tok_per_s: float
    loaded_tok_per_s: float
    preemptions: float


class Ratios(msgspec.Struct, frozen=True):
    """Figures of one run divided by those of another run of the same load."""

    mean: float
    p50: float
    p99: float
    tok_per_s: float
    loaded_tok_per_s: float


def figures(timings: Sequence[Timing], preemptions: int, loaded_tok_per_s: float) -> Figures:
    """Return the figures of a run, from the first arrival to the last token.

    Args:
        timings: all answered requests.
        preemptions: preemptions of the engine.
        loaded_tok_per_s: tokens per second up to the last arrival.

    Raises:
        ValueError: there are no timings.
    """
    if not timings:
        raise ValueError("no request was answered")
    e2e = np.array([timing.done_s - timing.arrival_s for timing in timings])
    seconds = max(timing.done_s for timing in timings) - min(timing.arrival_s for timing in timings)
    p50, p90, p99 = np.quantile(e2e, (0.5, 0.9, 0.99)).tolist()
    return Figures(
        mean_s=float(e2e.mean()),
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        ttft_mean_s=float(np.mean([timing.first_s - timing.arrival_s for timing in timings])),
        req_per_s=len(timings) / seconds,
        tok_per_s=sum(timing.tokens for timing in timings) / seconds,
        loaded_tok_per_s=loaded_tok_per_s,
        preemptions=preemptions,
    )


def ratios(run: Figures, base: Figures) -> Ratios:
    """Return the figures of a run divided by those of another."""
    return Ratios(
        mean=run.mean_s / base.mean_s,
        p50=run.p50_s / base.p50_s,
        p99=run.p99_s / base.p99_s,
        tok_per_s=run.tok_per_s / base.tok_per_s,
        loaded_tok_per_s=run.loaded_tok_per_s / base.loaded_tok_per_s,
    )


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return predicted / measured - 1 for each pair.

    >>> relative_errors([1.5], [2.0])
    [-0.25]
    """
    return [p / m - 1.0 for p, m in zip(predicted, measured, strict=True)]


def medians(runs: Sequence[Figures] | Sequence[Ratios]) -> dict[str, float]:
    """Return the median of each figure over runs.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("no runs")
    return {name: median(getattr(run, name) for run in runs) for name in runs[0].__struct_fields__}
