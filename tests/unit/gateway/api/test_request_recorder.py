from dataclasses import replace

import pytest

from gateway.api.request_recorder import RequestRecorder
from gateway.errors import (
    BackendRefused,
    BackendUnavailable,
    ClientGone,
    GatewayError,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    QueueTimeout,
    ShuttingDown,
)
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Predictor
from gateway.protocol.answers import Usage
from gateway.protocol.openai import read_chat
from gateway.telemetry.metrics import Metrics
from tests.unit.gateway.request_context import request_context

ASK = PredictionInput("mail", "llama", "ann", text_bytes=6)
ROUTE = "/v1/chat/completions"
BODY = (
    b'{"model": "llama", "messages": [{"role": "user", "content": "sesame"}], "user": "ann", "n": 2, "max_tokens": 900}'
)


class Recorded:
    """A recorder, and the records that it made."""

    def __init__(self, *, store_prompts=False):
        self.records = []
        self.metrics = Metrics()
        self.predictor = Predictor()
        self.recorder = RequestRecorder(self.records.append, self.predictor, self.metrics, store_prompts)

    def finish(self, error=None, *, read=True, app="mail", **outcome):
        context = request_context(10.0, app=app, **outcome)
        if read:
            context.generation = read_chat(BODY)
            context.forecast = self.predictor.forecast(replace(ASK, max_tokens=900), None)
        self.recorder.finish(context, error, 14.0)
        return self.records[-1] if self.records else None

    def count(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"magnus_{name}", labels) or 0.0


ANSWERED = {
    "backend": "gpu-0",
    "dispatched_s": 10.5,
    "first_byte_s": 11.0,
    "events": 5,
    "usage": Usage(7, 600),
    "finish_reason": "stop",
}


@pytest.mark.parametrize(
    ("error", "status", "http_status", "code"),
    [
        (None, "ok", 200, None),
        (ClientGone("gone"), "cancelled", 499, "client_gone"),
        (InvalidRequest("no"), "rejected", 400, "invalid_request"),
        (ModelNotFound("no"), "rejected", 404, "model_not_found"),
        (QueueFull("full", retry_after_s=1.0), "rejected", 429, "queue_full"),
        (QueueTimeout("late"), "evicted", 504, "queue_timeout"),
        (ShuttingDown("bye"), "evicted", 503, "shutting_down"),
        (BackendUnavailable("broken"), "failed", 502, "backend_unavailable"),
        (BackendRefused("no", status=400, type="BadRequestError"), "failed", 400, "BadRequestError"),
        (BackendRefused("no", status=400, type="BadRequestError", code=40), "failed", 400, "40"),
        (GatewayError("a bug"), "failed", 500, "server_error"),
    ],
)
def test_every_outcome_has_its_status(error, status, http_status, code):
    recorded = Recorded()
    record = recorded.finish(error)
    assert (record.status, record.http_status, record.error_code) == (status, http_status, code)
    assert recorded.count("requests_total", route=ROUTE, status=status) == 1


def test_the_record_of_an_answer_is_complete():
    record = Recorded().finish(**ANSWERED)
    assert (record.id, record.request_id, record.route) == ("id", "req-1", ROUTE)
    assert (record.app, record.user, record.model, record.backend) == ("mail", "ann", "llama", "gpu-0")
    assert (record.input_tokens, record.output_tokens, record.sequences, record.max_tokens) == (7, 600, 2, 900)
    assert (record.queue_ms, record.ttft_ms, record.e2e_ms) == (500.0, 1000.0, 4000.0)
    assert (record.finish_reason, record.prediction_source) == ("stop", "prior")
    assert 1 <= record.predicted_tokens <= record.predicted_p90_tokens <= 900


def test_stages_that_were_not_reached_are_empty():
    record = Recorded().finish(QueueTimeout("late"))
    assert (record.backend, record.queue_ms, record.ttft_ms, record.input_tokens) == (None, None, None, None)
    assert record.e2e_ms == 4000.0


@pytest.mark.parametrize(("store_prompts", "prompt"), [(False, None), (True, "sesame")])
def test_a_prompt_is_stored_only_if_configured(store_prompts, prompt):
    assert Recorded(store_prompts=store_prompts).finish().prompt == prompt


def test_a_request_that_could_not_be_read_is_counted_but_not_recorded():
    recorded = Recorded()
    assert recorded.finish(InvalidRequest("no"), read=False) is None
    assert recorded.finish(InvalidRequest("no"), app=None) is None
    assert recorded.count("requests_total", route=ROUTE, status="rejected") == 2


def test_predictor_learns_from_answers():
    recorded = Recorded()
    for _ in range(50):
        recorded.finish(**ANSWERED)
    expected = recorded.predictor.forecast(ASK, None)
    assert expected.p50_tokens == pytest.approx(300, rel=0.2)  # of each of the two sequences


@pytest.mark.parametrize("error", [ClientGone("gone"), BackendUnavailable("broken"), QueueTimeout("late")])
def test_the_predictor_does_not_learn_from_incomplete_answers(error):
    recorded = Recorded()
    for _ in range(50):
        recorded.finish(error, **ANSWERED)
    assert recorded.predictor.quality.seen == 0
    assert recorded.count("output_tokens_count") == 0


def test_an_answer_is_measured_in_the_metrics():
    recorded = Recorded()
    recorded.finish(**ANSWERED)
    sums = [recorded.count(f"{name}_sum") for name in ("e2e_seconds", "queue_seconds", "ttft_seconds", "output_tokens")]
    assert sums == [4.0, 0.5, 1.0, 600.0]
