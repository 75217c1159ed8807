"""From files of past requests to a workload: read, split, trained."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backends.simulator.config import EngineConfig
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.prediction.embedder import Embedder
from gateway.prediction.length_model import LengthModel
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.experiment import Workload
from gateway.simulation.trained import split, trained_forecasts
from gateway.simulation.workload import answered
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions
from gateway.training.rows import PastRow, read_rows


def read_workload(files: Sequence[Path], instructions: Path | None = None) -> list[PastRow]:
    """Read rows, those without a system prompt with the one of their task.

    Raises:
        RowError: a file cannot be used.
    """
    texts = Instructions.load(instructions) if instructions else NO_INSTRUCTIONS
    return answered(row for path in files for row in texts.apply(read_rows(path)))


def trained_workload(
    name: str,
    rows: Sequence[PastRow],
    config: EngineConfig,
    embedder: Embedder,
    *,
    progress_tokens: int = PROGRESS_TOKENS,
    cache: Path | None = None,
    model: LengthModel | None = None,
) -> Workload:
    """Train on half of the rows; the workload is the other half with its forecasts.

    Args:
        name: for tables.
        rows: past requests.
        config: of the engines.
        embedder: of the texts.
        progress_tokens: the core hears of an answer's growth every so many tokens.
        cache: folder in which forecasts are kept, by what they were made of; None keeps nothing.
        model: hyper-parameters other than the default's.

    Raises:
        ValueError: too few rows.
    """
    training, simulated = split(rows)
    path = cache / f"forecasts-{_digest(training, simulated, embedder.name, model)}.npy" if cache else None
    if path is not None and path.exists():
        forecasts = [LengthQuantiles(tuple(logs)) for logs in np.load(path).tolist()]
    else:
        forecasts = trained_forecasts(training, simulated, embedder, model)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.array([forecast.logs for forecast in forecasts]))
    return Workload(name, simulated, config, forecasts, progress_tokens)


def _digest(training: Sequence[PastRow], simulated: Sequence[PastRow], embedder: str, model: LengthModel | None) -> str:
    digest = hashlib.sha1(f"{embedder} {vars(model or LengthModel())}".encode(), usedforsecurity=False)
    for part in (training, simulated):
        digest.update(f"|{len(part)}".encode())
        for row in part:
            digest.update(repr((row.app, row.user, row.system, row.text, row.input_tokens, row.output_tokens)).encode())
    return digest.hexdigest()[:16]
