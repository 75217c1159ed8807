"""`python -m bench prediction chat-ceiling`: how well one sampled answer predicts another.

LENGTHS has one prompt per line and the lengths of one model's sampled answers (columns `L_t0.5` and `L_t0.7`). A
predictor that sees only the prompt can know no more than the distribution of the answers. Another sample, and the best
line on it, show about how much that is.
"""

import csv
import gzip
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from bench.prediction.rows import print_table
from gateway.cli.options import JsonOption
from gateway.prediction.metrics import kendall_tau

Floats = NDArray[np.float64]


def command(
    lengths: Annotated[Path, typer.Argument(help="Table of lengths, .csv.gz.")],
    as_json: JsonOption = False,
) -> None:
    """Measure how well one sampled answer predicts another answer to the same prompt."""
    with gzip.open(lengths, "rt") as file:
        draws = np.array([(float(row["L_t0.5"]), float(row["L_t0.7"])) for row in csv.DictReader(file)])
    print_table(ceiling(draws[:, 0], draws[:, 1]), as_json=as_json)


def ceiling(seen: Floats, drawn: Floats) -> list[dict[str, Any]]:
    """Return the rows of the table: errors of the median, of the other draw (n,), and of the best line on it."""
    slope, intercept = np.polyfit(seen, drawn, 1)
    constant = np.full(len(drawn), np.median(drawn))
    predictors = {"median of all": constant, "other draw": seen, "line on other draw": slope * seen + intercept}
    correlation = float(np.corrcoef(seen, drawn)[0, 1])
    return [
        {
            "predictor": name,
            "mae": float(np.mean(np.abs(predicted - drawn))),
            "rmse": float(np.sqrt(np.mean((predicted - drawn) ** 2))),
            "kendall_tau": kendall_tau(np.round(predicted), drawn),
            "correlation of draws": correlation,
            "mean tokens": float(np.mean(drawn)),
        }
        for name, predicted in predictors.items()
    ]
