import pytest

from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Forecast
from gateway.protocol.answers import Usage
from gateway.scheduling.length import LengthQuantiles
from tests.unit.gateway.request_context import request_context

FORECAST = Forecast(PredictionInput("mail", "llama"), 10, LengthQuantiles.of((10, 20, 40, 80, 150, 200)), "prior")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (None, 5)),
        (Usage(7, 3), (7, 3)),
        (Usage(7, 0), (7, 0)),
        (Usage(None, 3), (None, 3)),
        (Usage(7, None), (7, 5)),
    ],
)
def test_engine_counts_take_precedence_over_events(usage, counts):
    finished = request_context(1.0, events=5, usage=usage)
    assert (finished.input_tokens, finished.output_tokens) == counts


def test_response_headers_contain_only_what_is_known():
    assert request_context(1.0).response_headers() == {"x-request-id": "req-1"}
    assert request_context(1.0, backend="gpu-0", dispatched_s=1.25, forecast=FORECAST).response_headers() == {
        "x-request-id": "req-1",
        "x-magnus-predicted-tokens": "40",
        "x-magnus-queue-ms": "250.0",
        "x-magnus-backend": "gpu-0",
    }
