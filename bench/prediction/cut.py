"""`python -m bench prediction cut`: the probability that `max_tokens` cuts an answer.

Every row gets a random `max_tokens`, a power of two, and its answer is cut there. The table has the Brier
score of the predicted probability beside that of each limit's base rate, and the share cut by predicted probability.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.prediction.cold_start import trained
from bench.prediction.options import FilesArgument, TreesOption
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import StaticEmbedder
from gateway.prediction.evaluation import PastRequest, split_by_group
from gateway.prediction.length_predictor import LengthPredictor

LIMITS = (16, 32, 64, 128, 256, 512)

Floats = NDArray[np.float64]


def command(
    files: FilesArgument,
    trees: TreesOption = 1000,
    as_json: JsonOption = False,
) -> None:
    """Measure the predicted probability that `max_tokens` cuts an answer."""
    draws = random.Random(0)
    rows = [limited(row, draws.choice(LIMITS)) for row in read_rows(files)]
    train, test = split_by_group(rows)
    predictor = trained(train, StaticEmbedder(), trees)
    print_table(table(*served(predictor, test)), as_json=as_json)


def limited(row: PastRequest, max_tokens: int) -> PastRequest:
    """Return the row as it would be with a limit."""
    cut = row.output_tokens >= max_tokens
    limited_input = replace(row.input, max_tokens=max_tokens)
    return replace(row, input=limited_input, output_tokens=min(row.output_tokens, max_tokens), cut=cut)


def served(predictor: LengthPredictor, rows: Sequence[PastRequest]) -> tuple[Floats, Floats, Floats]:
    """Return the predicted probabilities, the limits, and 1 for each answer that was cut, (n,) each."""
    probabilities = []
    for row in rows:
        forecast = predictor.predict_one(row.input)
        probabilities.append(forecast.cut_probability or 0.0)
        predictor.learn_one(forecast, row.output_tokens, cut=row.cut)
    limits = np.array([row.input.max_tokens or 0 for row in rows], float)
    return np.array(probabilities), limits, np.array([row.cut for row in rows], float)


def table(probabilities: Floats, limits: Floats, cut: Floats) -> list[dict[str, Any]]:
    """Return the rows of the table: all requests, then by fifths of the predicted probability."""
    base = np.zeros(len(cut))
    for limit in LIMITS:
        base[limits == limit] = cut[limits == limit].mean()
    rows = [_row("all", probabilities, base, cut)]
    for low in np.arange(0.0, 1.0, 0.2):
        part = (probabilities >= low) & (probabilities < low + 0.2 + 1e-9 * (low > 0.7))
        if part.any():
            rows.append(_row(f"{low:.1f}-{low + 0.2:.1f}", probabilities[part], base[part], cut[part]))
    return rows


def _row(name: str, probabilities: Floats, base: Floats, cut: Floats) -> dict[str, Any]:
    return {
        "predicted": name,
        "n": len(cut),
        "mean predicted": float(probabilities.mean()),
        "share cut": float(cut.mean()),
        "brier": float(np.mean((probabilities - cut) ** 2)),
        "brier of base rate": float(np.mean((base - cut) ** 2)),
    }
