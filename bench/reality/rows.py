"""Divides the rows of a workload into history, calibration and measurement, which share no input."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gateway.training.rows import PastRow, read_rows


class TooFewRowsError(ValueError):
    """The files have fewer rows than the benchmark needs."""


@dataclass(frozen=True, slots=True)
class Row:
    """One request and the true length of its answer; `prompt_tokens` is 0 until the engine has counted them."""

    app: str
    prompt: str
    output_tokens: int
    prompt_tokens: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """Chat messages of the request."""
        return [{"role": "user", "content": self.prompt}]

    @property
    def final_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Parts:
    """Disjoint rows: `past` is the gateway's history, `calibration` fits the step model, each of `runs` is one load."""

    past: list[Row]
    calibration: list[Row]
    runs: list[list[Row]]

    @property
    def measured(self) -> list[Row]:
        """The rows of all runs."""
        return [row for run in self.runs for row in run]


def read_files(paths: Iterable[Path], *, longest: int, seed: int) -> list[Row]:
    """Read rows with a prompt and an answer, in random order, without repeated inputs.

    Args:
        paths: JSON lines, plain or .gz.
        longest: longest answer in tokens; longer ones would not fit the model's context.
        seed: determines the order.
    """
    rows = [row for path in paths for row in read_rows(path)]
    random.Random(seed).shuffle(rows)
    unique: dict[str, PastRow] = {}
    for row in rows:
        if row.text and 0 < row.output_tokens <= longest:
            unique.setdefault(row.group or row.text, row)
    by_text = {row.text: row for row in unique.values()}
    return [Row(row.app or "", text, row.output_tokens) for text, row in by_text.items() if text]


def divide(rows: Sequence[Row], *, past: int, calibration: int, runs: int, each: int) -> Parts:
    """Divide the rows in their order.

    Raises:
        TooFewRowsError: the parts need more rows.
    """
    needed = past + calibration + runs * each
    if len(rows) < needed:
        raise TooFewRowsError(f"{needed} rows with different inputs are needed, and the files have {len(rows)}")
    rest = iter(rows)
    return Parts(
        list(islice(rest, past)),
        list(islice(rest, calibration)),
        [list(islice(rest, each)) for _ in range(runs)],
    )


def poisson_times(count: int, rate: float, seed: int) -> list[float]:
    """Return arrival times in seconds of a Poisson process; the first is 0."""
    gaps = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += gaps.expovariate(rate)
    return times
