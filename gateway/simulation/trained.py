"""Forecasts from the real predictor, trained on rows that are not simulated.

Features, trees, mixture and calibration are those that serve. They know what they knew at the end of the training and
learn nothing during a run, so that every policy is given the same forecasts and no outcome leaks. A gateway goes on
learning with every answer, so this errs on the pessimistic side.
"""

from collections.abc import Sequence
from dataclasses import replace

from gateway.prediction.embedder import Embedder
from gateway.prediction.evaluation import PastRequest, learn_history, split_by_group
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.fitting import fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.scheduling.length import LengthQuantiles
from gateway.simulation.workload import BYTES_PER_TOKEN, answered
from gateway.training.rows import PastRow

BATCH = 512
MAX_TRAINING_ROWS = 30_000
TRAINING_SHARE = 0.5


def split(rows: Sequence[PastRow], *, seed: int = 0) -> tuple[list[PastRow], list[PastRow]]:
    """Split rows into those to train on and those to simulate, half each.

    Rows with times are split at one: the earlier ones are trained on. Others are drawn, all rows of a group together.
    Of the rows to train on at most `MAX_TRAINING_ROWS` are kept, with times the latest.
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
    """Train on rows and forecast others.

    Args:
        training: rows to train on, in the order of their times where they have any.
        rows: rows to forecast, each with what is known at the end of the training.
        embedder: of their texts.
        model: hyper-parameters other than the default's.

    Raises:
        ValueError: too few rows to train on.
    """
    predictor = LengthPredictor(FeatureExtractor(embedder))
    predictor.serve(fit_predictor(learn_history(predictor.extractor, [_past(row) for row in training]), model))
    asks = [_ask(row) for row in rows]
    forecasts = (predictor.predict(asks[start : start + BATCH]) for start in range(0, len(asks), BATCH))
    return [forecast.length for batch in forecasts for forecast in batch]


def _past(row: PastRow) -> PastRequest:
    return PastRequest(_ask(row), row.output_tokens, input_tokens=row.input_tokens, t=row.t, group=row.group)


def _ask(row: PastRow) -> PredictionInput:
    """What a gateway sees of the request; of a trace that is the size of a prompt that nobody has the text of."""
    ask = PredictionInput.of_row(row)
    if row.text is None and row.input_tokens:
        return replace(ask, text_bytes=round(BYTES_PER_TOKEN * row.input_tokens))
    return ask
