import json
from datetime import UTC, datetime

import pytest

from gateway.api.exchange import AsgiClient, Exchange
from gateway.dispatch.trip import Trip
from gateway.errors import InvalidRequest, QueueFull
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Forecast
from gateway.protocol.api_formats import ANTHROPIC
from gateway.protocol.fields import read_chat
from gateway.scheduling.length import LengthQuantiles

ASKED = read_chat(b'{"model": "llama", "messages": [], "user": "ann"}')
FORECAST = Forecast(PredictionInput("mail", "llama"), 10, LengthQuantiles.of((10, 20, 40, 80, 150, 200)), "prior")


def exchange(**known):
    trip = known.pop("trip", Trip(arrival_s=1.0))
    return Exchange("id", "req-1", "/v1/chat/completions", datetime(2026, 1, 1, tzinfo=UTC), trip, **known)


class Sent:
    """What went out over ASGI."""

    def __init__(self):
        self.messages = []

    async def __call__(self, message):
        self.messages.append(message)

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self):
        return b"".join(message["body"] for message in self.messages[1:])


@pytest.fixture
def sent():
    return Sent()


def test_headers_tell_as_much_as_is_known():
    assert exchange().headers() == {"x-request-id": "req-1"}
    trip = Trip(arrival_s=1.0, backend="gpu-0", dispatched_s=1.25)
    assert exchange(trip=trip, forecast=FORECAST).headers() == {
        "x-request-id": "req-1",
        "x-magnus-predicted-tokens": "40",
        "x-magnus-queue-ms": "250.0",
        "x-magnus-backend": "gpu-0",
    }


async def test_a_whole_answer_says_its_length(sent):
    client = AsgiClient(exchange(), sent)
    assert not client.started
    await client.start(200, "application/json", length=2)
    await client.send(b"{}", more=False)
    assert client.started
    assert sent.headers == {"content-type": "application/json", "x-request-id": "req-1", "content-length": "2"}
    assert (sent.body, sent.messages[-1]["more_body"]) == (b"{}", False)


async def test_a_stream_is_not_to_be_cached(sent):
    client = AsgiClient(exchange(), sent)
    await client.start(200, "text/event-stream", length=None)
    assert sent.headers["cache-control"] == "no-cache"
    assert "content-length" not in sent.headers


async def test_an_error_before_the_first_byte_is_a_response(sent):
    await AsgiClient(exchange(), sent).fail(InvalidRequest("no", param="n"))
    assert (sent.status, sent.headers["x-request-id"]) == (400, "req-1")
    assert json.loads(sent.body)["error"]["param"] == "n"
    assert int(sent.headers["content-length"]) == len(sent.body)


async def test_an_error_brings_its_own_headers(sent):
    await AsgiClient(exchange(), sent).fail(QueueFull("full", retry_after_s=7.0))
    assert (sent.status, sent.headers["retry-after"]) == (429, "7")


async def test_an_error_is_worded_as_the_client_s_api_has_it(sent):
    await AsgiClient(exchange(api_format=ANTHROPIC), sent).fail(InvalidRequest("no"))
    assert json.loads(sent.body) == {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}


async def test_an_error_may_end_the_connection(sent):
    await AsgiClient(exchange(), sent).fail(InvalidRequest("no"), close=True)
    assert sent.headers["connection"] == "close"


async def test_an_error_within_what_is_no_stream_adds_nothing_to_it(sent):
    client = AsgiClient(exchange(), sent)
    await client.start(200, "audio/wav", length=100)
    await client.send(b"RIFF", more=True)
    await client.fail(InvalidRequest("no"))
    assert sent.body == b"RIFF"
    assert sent.messages[-1]["more_body"] is True


async def test_an_error_after_the_first_byte_is_an_event_and_the_end(sent):
    client = AsgiClient(exchange(), sent)
    await client.start(200, "text/event-stream", length=None)
    await client.send(b"data: {}\n\n", more=True)
    await client.fail(InvalidRequest("no"))
    assert sent.body.startswith(b'data: {}\n\ndata: {"error":')
    assert b"[DONE]" not in sent.body
    assert [message["more_body"] for message in sent.messages[1:]] == [True, False]
