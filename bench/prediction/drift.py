"""`python -m bench prediction drift`: all answers of an application become longer at once.

The first half of an application's requests stays as it is; in the second half every answer is longer by the factor. The
model is not trained again; history and calibration learn. The table shows the coverage of the 0.9-quantile for each
hundred requests after the change, and the error of the median before and after it.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import typer

from bench.prediction.cold_start import trained
from bench.prediction.options import FilesArgument, TreesOption
from bench.prediction.rows import print_table, read_rows
from gateway.cli.options import JsonOption
from gateway.prediction.embedder import StaticEmbedder
from gateway.prediction.evaluation import PastRequest, score, split_by_group
from gateway.prediction.length_predictor import LengthPredictor


def command(
    files: FilesArgument,
    factor: Annotated[float, typer.Option(help="Factor by which the answers become longer.")] = 3.0,
    trees: TreesOption = 1000,
    as_json: JsonOption = False,
) -> None:
    """Measure coverage and error after all answers of an application become longer."""
    train, test = split_by_group(read_rows(files))
    predictor = trained(train, StaticEmbedder(), trees)
    apps = sorted({row.input.app for row in test})
    table = [drifted(app, predictor, [r for r in test if r.input.app == app], factor) for app in apps]
    print_table(table, as_json=as_json)


def drifted(app: str, predictor: LengthPredictor, rows: Sequence[PastRequest], factor: float) -> dict[str, Any]:
    """Return a row of the table: coverage before the change, by hundreds after it, and from the 200th request on."""
    half = len(rows) // 2
    longer = [replace(row, output_tokens=round(factor * row.output_tokens)) for row in rows[half:]]
    served = LengthPredictor(predictor.extractor.embedder, deepcopy(predictor.memory))
    served.model, served.calibration = predictor.model, deepcopy(predictor.calibration)
    scored = score(served, [*rows[:half], *longer])
    covered = scored.actual <= scored.p90
    parts = np.split(covered[half : half + 500], range(100, 500, 100))
    row: dict[str, Any] = {"app": app, "before": float(covered[:half].mean())}
    row |= {f"{100 * i}-{100 * (i + 1)}": float(part.mean()) for i, part in enumerate(parts) if len(part)}
    row["from 200"] = float(covered[half + 200 :].mean())
    row["mae before x factor"] = factor * float(abs(scored.median - scored.actual)[:half].mean())
    row["mae from 200"] = float(abs(scored.median - scored.actual)[half + 200 :].mean())
    return row
