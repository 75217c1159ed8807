import asyncio
import threading

import pytest

from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import FeatureExtractor
from gateway.prediction.forecaster import MAX_BATCH, Forecaster
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Predictor

ASK = PredictionInput("mail", "llama", text="hello", text_bytes=5)


class RecordingPredictor(LengthPredictor):
    """Remembers how many asks came together."""

    def __init__(self, embedder):
        super().__init__(FeatureExtractor(embedder))
        self.batches = []

    def predict_one(self, ask):
        self.batches.append(1)
        return super().predict_one(ask)

    def predict(self, asks):
        self.batches.append(len(asks))
        return super().predict(asks)


class SlowEmbedder(NoEmbedder):
    """Takes as long as it is made to."""

    name = "slow"

    def __init__(self):
        self.released = threading.Event()

    def embed(self, texts):
        assert self.released.wait(10)
        return super().embed(texts)


def forecaster(embedder, budget_s=5.0):
    fallbacks = []
    predictor = Predictor(fallbacks.append)
    predictor.lengths = RecordingPredictor(embedder)
    return Forecaster(predictor, budget_s, fallbacks.append), predictor.lengths, fallbacks


async def test_without_features_history_answers_at_once():
    expected = await Forecaster(Predictor(), 1.0, str).forecast(ASK, None)
    assert (expected.source, expected.learned) == ("prior", None)


async def test_what_comes_together_is_predicted_together():
    ours, lengths, _ = forecaster(NoEmbedder())
    forecasts = await asyncio.gather(*(ours.forecast(ASK, None) for _ in range(MAX_BATCH + 1)))
    assert lengths.batches == [MAX_BATCH, 1]
    assert all(expected.learned is not None for expected in forecasts)


@pytest.mark.filterwarnings("error")
async def test_a_budget_that_is_spent_leaves_the_answer_to_history():
    embedder = SlowEmbedder()
    ours, _, fallbacks = forecaster(embedder, budget_s=0.01)
    expected = await ours.forecast(ASK, None)
    embedder.released.set()
    assert (expected.source, expected.learned, fallbacks) == ("prior", None, ["prediction_budget"])


async def test_a_slow_embedder_leaves_the_loop_to_others():
    embedder = SlowEmbedder()
    ours, _, fallbacks = forecaster(embedder)
    waiting = asyncio.create_task(ours.forecast(ASK, None))
    await asyncio.sleep(0)  # others are served while it works: this line is one of them
    await asyncio.sleep(0)
    assert not waiting.done()
    embedder.released.set()
    assert (await waiting).learned is not None
    assert fallbacks == []
