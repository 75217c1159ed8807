"""What a run showed, and how runs compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
import numpy as np


@dataclass(frozen=True, slots=True)
class Timing:
    """One answered request: when it arrived, its first and its last token came, and how many there were."""

    arrival_s: float
    first_s: float
    done_s: float
    tokens: int


class Figures(msgspec.Struct, frozen=True):
    """One run, measured or simulated. Times are end to end, in seconds.

    `loaded_tok_per_s` is up to the last arrival: what comes later depends on how long the last few answers are.
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
    """One run over another of the same load."""

    mean: float
    p50: float
    p99: float
    tok_per_s: float
    loaded_tok_per_s: float


def figures(timings: Sequence[Timing], preemptions: int, loaded_tok_per_s: float) -> Figures:
    """Sum up a run, from the first arrival to the last token.

    Args:
        timings: of all its requests.
        preemptions: the engine's.
        loaded_tok_per_s: tokens a second up to the last arrival.

    Raises:
        ValueError: nothing was answered.
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
    """Divide a run's figures by another's."""
    return Ratios(
        mean=run.mean_s / base.mean_s,
        p50=run.p50_s / base.p50_s,
        p99=run.p99_s / base.p99_s,
        tok_per_s=run.tok_per_s / base.tok_per_s,
        loaded_tok_per_s=run.loaded_tok_per_s / base.loaded_tok_per_s,
    )


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> list[float]:
    """Return predicted over measured, less one, pair by pair.

    >>> relative_errors([1.5], [2.0])
    [-0.25]
    """
    return [p / m - 1.0 for p, m in zip(predicted, measured, strict=True)]


def medians(runs: Sequence[Figures] | Sequence[Ratios]) -> dict[str, float]:
    """Return the median of each figure over runs.

    Raises:
        ValueError: there are none.
    """
    if not runs:
        raise ValueError("no runs")
    return {name: median(getattr(run, name) for run in runs) for name in runs[0].__struct_fields__}
