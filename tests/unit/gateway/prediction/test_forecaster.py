import asyncio
import threading

import pytest

from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import MAX_BATCH, Forecaster, Predictor

INPUT = PredictionInput("mail", "llama", text="hello", text_bytes=5)


class RecordingEmbedder(NoEmbedder):
    """Remembers how many requests came together; the embedding of no system prompt does not count."""

    def __init__(self):
        self.batches = []

    def embed(self, texts):
        if texts != [""]:
            self.batches.append(len(texts))
        return super().embed(texts)


class SlowEmbedder(NoEmbedder):
    """Waits until it is released."""

    name = "slow"

    def __init__(self):
        self.released = threading.Event()

    def embed(self, texts):
        assert self.released.wait(10)
        return super().embed(texts)


def forecaster(embedder, budget_s=5.0):
    fallbacks = []
    predictor = Predictor(fallbacks.append)
    predictor.use_embedder(embedder)
    return Forecaster(predictor, budget_s, fallbacks.append), fallbacks


async def test_without_an_embedder_history_forecasts_at_once():
    expected = await Forecaster(Predictor(), 1.0, lambda _: None).forecast(INPUT, None)
    assert (expected.source, expected.learned) == ("prior", None)


async def test_requests_that_arrive_together_are_predicted_together():
    embedder = RecordingEmbedder()
    ours, _ = forecaster(embedder)
    forecasts = await asyncio.gather(*(ours.forecast(INPUT, None) for _ in range(MAX_BATCH + 1)))
    assert embedder.batches == [MAX_BATCH, 1]
    assert all(expected.learned is not None for expected in forecasts)


@pytest.mark.filterwarnings("error")
async def test_history_forecasts_when_the_budget_is_spent():
    embedder = SlowEmbedder()
    ours, fallbacks = forecaster(embedder, budget_s=0.01)
    expected = await ours.forecast(INPUT, None)
    embedder.released.set()
    assert (expected.source, expected.learned, fallbacks) == ("prior", None, ["prediction_budget"])


async def test_a_slow_embedder_does_not_block_the_event_loop():
    embedder = SlowEmbedder()
    ours, fallbacks = forecaster(embedder)
    waiting = asyncio.create_task(ours.forecast(INPUT, None))
    await asyncio.sleep(0)  # this task runs while the embedder waits
    await asyncio.sleep(0)
    assert not waiting.done()
    embedder.released.set()
    assert (await waiting).learned is not None
    assert fallbacks == []
