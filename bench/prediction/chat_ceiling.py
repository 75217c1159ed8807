"""How well one draw of an answer predicts another: `python -m bench.prediction.chat_ceiling LENGTHS [--json]`.

LENGTHS has one prompt a line and the lengths that one model's answers took when sampled again (columns `L_t0.5` and
`L_t0.7`). No predictor that sees the prompt alone can know more of an answer than its distribution; another draw, and
the best line on it, show about how much that is.
"""

import argparse
import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.prediction.rows import print_table
from gateway.prediction.evaluation import kendall_tau

Floats = NDArray[np.float64]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with gzip.open(options.lengths, "rt") as file:
        draws = np.array([(float(row["L_t0.5"]), float(row["L_t0.7"])) for row in csv.DictReader(file)])
    print_table(ceiling(draws[:, 0], draws[:, 1]), as_json=options.json)


def ceiling(seen: Floats, drawn: Floats) -> list[dict[str, Any]]:
    """Return a table's rows: errors on draws (n,) of knowing nothing, the other draw, and the best line on it."""
    slope, intercept = np.polyfit(seen, drawn, 1)
    constant = np.full(len(drawn), np.median(drawn))
    predictors = {"median of all": constant, "other draw": seen, "line on other draw": slope * seen + intercept}
    correlation = float(np.corrcoef(seen, drawn)[0, 1])
    return [
        {
            "predictor": name,
            "mae": float(np.mean(np.abs(predicted - drawn))),
            "rmse": float(np.sqrt(np.mean((predicted - drawn) ** 2))),
            "kendall_tau": kendall_tau(predicted, drawn),
            "correlation of draws": correlation,
            "mean tokens": float(np.mean(drawn)),
        }
        for name, predicted in predictors.items()
    ]


if __name__ == "__main__":
    main()
