"""Reads past requests, trains the real predictor on half of them, and forecasts the other half for a simulation.

Features, trees, mixture and calibration are those that the gateway serves with. The predictor learns nothing during a
run, so every policy gets the same forecasts and no outcome leaks into them. A gateway keeps learning from each answer,
so its forecasts are somewhat better than these.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends.simulator.config import EngineConfig
from gateway.dispatch.dispatcher import PROGRESS_TOKENS
from gateway.prediction.embedder import Embedder
from gateway.prediction.evaluation import PastRequest, learn_history, split_by_group
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.experiment import Workload
from gateway.simulation.workload import BYTES_PER_TOKEN, answered
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions
from gateway.training.rows import PastRow, read_rows

BATCH = 512
MAX_TRAINING_ROWS = 30_000
TRAINING_SHARE = 0.5


def read_workload(files: Sequence[Path], instructions: Path | None = None) -> list[PastRow]:
    """Read past requests. Rows without a system prompt get the instruction of their task.

    Raises:
        RowError: a file cannot be read, or has a bad row.
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
    """Train on half of the rows, and return the other half as a workload with its forecasts.

    Args:
        name: title in tables.
        rows: past requests.
        config: settings of the engines.
        embedder: turns texts into vectors.
        progress_tokens: the scheduler gets a progress message each time that an answer has grown by this many tokens.
        cache: folder that keeps forecasts, under a hash of what they were made from; None keeps nothing.
        model: an unfitted model with other hyper-parameters than the default's.

    Raises:
        ValueError: there are too few rows to train on.
    """
    training, simulated = split_rows(rows)
    path = cache / f"forecasts-{_digest(training, simulated, embedder.name, model)}.npy" if cache else None
    if path is not None and path.exists():
        forecasts = [LengthQuantiles(tuple(logs)) for logs in np.load(path).tolist()]
    else:
        forecasts = trained_forecasts(training, simulated, embedder, model)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.array([forecast.logs for forecast in forecasts]))
    return Workload(name, simulated, config, forecasts, progress_tokens)


def split_rows(rows: Sequence[PastRow], *, seed: int = 0) -> tuple[list[PastRow], list[PastRow]]:
    """Split rows into a half to train on and a half to simulate.

    Rows with times are split at a point in time, and the earlier half is trained on. Other rows are drawn at random,
    all rows of a group together. At most `MAX_TRAINING_ROWS` are trained on: the latest ones if rows have times.
    """
    past = answered(rows)
    if past and all(row.t is not None for row in past):
        past.sort(key=lambda row: row.t or 0.0)
        cut = round(len(past) * TRAINING_SHARE)
        return past[max(0, cut - MAX_TRAINING_ROWS) : cut], past[cut:]
    keyed = [PastRequest(PredictionInput("", ""), index, group=row.group) for index, row in enumerate(past)]
    train, test = split_by_group(keyed, test_share=1.0 - TRAINING_SHARE, seed=seed)
    return [past[one.output_tokens] for one in train[:MAX_TRAINING_ROWS]], [past[one.output_tokens] for one in test]


def trained_forecasts(
    training: Sequence[PastRow], rows: Sequence[PastRow], embedder: Embedder, model: LengthModel | None = None
) -> list[LengthQuantiles]:
    """Train on some rows and forecast the answers of others.

    Args:
        training: rows to train on, in the order of their times if they have any.
        rows: rows to forecast, with what is known at the end of the training.
        embedder: turns texts into vectors.
        model: an unfitted model with other hyper-parameters than the default's.

    Raises:
        ValueError: there are too few rows to train on.
    """
    predictor = LengthPredictor(embedder)
    predictor.serve(fit_predictor(learn_history(predictor.extractor, [_past(row) for row in training]), model))
    asks = [_ask(row) for row in rows]
    forecasts = (predictor.predict(asks[start : start + BATCH]) for start in range(0, len(asks), BATCH))
    return [forecast.length for batch in forecasts for forecast in batch]


def _past(row: PastRow) -> PastRequest:
    return PastRequest(_ask(row), row.output_tokens, input_tokens=row.input_tokens, t=row.t, group=row.group)


def _ask(row: PastRow) -> PredictionInput:
    """Return what a gateway knows of the request. A trace has no texts, so the prompt's size is computed."""
    ask = row.prediction_input()
    if row.text is None and row.input_tokens:
        return replace(ask, text_bytes=round(BYTES_PER_TOKEN * row.input_tokens))
    return ask


def _digest(training: Sequence[PastRow], simulated: Sequence[PastRow], embedder: str, model: LengthModel | None) -> str:
    digest = hashlib.sha1(f"{embedder} {vars(model or LengthModel())}".encode(), usedforsecurity=False)
    for part in (training, simulated):
        digest.update(f"|{len(part)}".encode())
        for row in part:
            digest.update(repr((row.app, row.user, row.system, row.text, row.input_tokens, row.output_tokens)).encode())
    return digest.hexdigest()[:16]
