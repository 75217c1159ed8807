"""Answers that triple at once: `python -m bench.prediction.drift FILE... [--factor X] [--json]`.

One application after the other: 1000 of its requests as they are, then as many with every answer longer by the factor.
Nothing is trained again; history and calibration learn. The table has the coverage of the 0.9-quantile by hundreds of
requests since the change, and the median's error beside what it was.
"""

import argparse
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.prediction.cold_start import trained
from bench.prediction.rows import print_table, read_rows
from gateway.prediction.embedder import load_embedder
from gateway.prediction.evaluation import PastRequest, score, split_by_group
from gateway.prediction.length_predictor import LengthPredictor


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--factor", type=float, default=3.0)
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "magnus-embedder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    train, test = split_by_group(read_rows(options.files))
    predictor = trained(train, load_embedder("static", options.cache), options.trees)
    apps = sorted({row.ask.app for row in test})
    table = [drifted(app, predictor, [r for r in test if r.ask.app == app], options.factor) for app in apps]
    print_table(table, as_json=options.json)


def drifted(app: str, predictor: LengthPredictor, rows: Sequence[PastRequest], factor: float) -> dict[str, Any]:
    """Return a table's row: coverage before the change, by hundreds after it, and over all from the 200th on."""
    half = len(rows) // 2
    longer = [replace(row, output_tokens=round(factor * row.output_tokens)) for row in rows[half:]]
    served = LengthPredictor(predictor.extractor)
    served.model, served.calibration = predictor.model, deepcopy(predictor.calibration)
    served.extractor.history = deepcopy(predictor.extractor.history)
    scored = score(served, [*rows[:half], *longer])
    covered = scored.actual <= scored.p90
    parts = np.split(covered[half : half + 500], range(100, 500, 100))
    row: dict[str, Any] = {"app": app, "before": float(covered[:half].mean())}
    row |= {f"{100 * i}-{100 * (i + 1)}": float(part.mean()) for i, part in enumerate(parts) if len(part)}
    row["from 200"] = float(covered[half + 200 :].mean())
    row["mae before x factor"] = factor * float(abs(scored.median - scored.actual)[:half].mean())
    row["mae from 200"] = float(abs(scored.median - scored.actual)[half + 200 :].mean())
    return row


if __name__ == "__main__":
    main()
