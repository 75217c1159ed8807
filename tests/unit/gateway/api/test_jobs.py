import json
from datetime import UTC, datetime

import pytest

from gateway.api.exchange import Exchange
from gateway.api.jobs import CHAT, COMPLETION, MIN_PREFIX_TOKENS, RESPONSE, Terms, bound_of
from gateway.dispatch.trip import Trip
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Forecast
from gateway.scheduling.length import LengthQuantiles

LENGTH = LengthQuantiles.of((10, 20, 40, 80, 150, 200))
TERMS = Terms(queue_timeout_s=60.0, priorities={"mail": -3, "reports": 5})


def job(route, prompt_tokens=1000, app="chat", bound_tokens=None, **fields):
    body = json.dumps({"model": "llama", **fields}).encode()
    exchange = Exchange("id", "req", route.path, datetime(2026, 1, 1, tzinfo=UTC), Trip(7.0), app, route.read(body))
    exchange.bound_tokens = bound_tokens
    forecast = Forecast(PredictionInput(app, "llama"), prompt_tokens, LENGTH, "history")
    return TERMS.job(exchange, forecast, route, body, {"authorization": "Bearer k1", "traceparent": "00-1"})


def chat(*contents, **fields):
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return job(CHAT, messages=messages, **fields)


def test_a_job_tells_the_scheduler_what_is_known_of_it():
    request = chat("s", "u", n=3).request
    assert (request.id, request.model, request.prompt_tokens, request.length) == ("id", "llama", 1000, LENGTH)
    assert (request.arrival_s, request.deadline_s, request.sequences) == (7.0, 67.0, 3)


@pytest.mark.parametrize(("app", "priority"), [("mail", -3), ("reports", 5), ("chat", 0)])
def test_an_application_s_priority_is_the_request_s(app, priority):
    assert chat("s", "u", app=app).request.priority == priority


def test_the_next_turn_of_a_conversation_finds_the_last_one():
    first = chat("s" * 500, "u" * 500).request.prefixes
    second = chat("s" * 500, "u" * 500, "a" * 500, "u" * 500).request.prefixes
    assert first[0].key in {prefix.key for prefix in second}
    assert [prefix.tokens for prefix in second] == sorted((prefix.tokens for prefix in second), reverse=True)
    assert second[0].tokens == 1000
    assert next(prefix.tokens for prefix in second if prefix.key == first[0].key) == pytest.approx(500, rel=0.1)


def test_a_beginning_of_a_few_tokens_is_not_worth_it():
    assert all(prefix.tokens >= MIN_PREFIX_TOKENS for prefix in chat("s", "u" * 500).request.prefixes)
    assert chat("s", "u", prompt_tokens=20).request.prefixes == ()


def test_text_completions_may_share_a_call_and_chats_may_not():
    assert chat("s", "u").request.batch_key is None
    one, other = (job(COMPLETION, prompt=prompt, max_tokens=5).request for prompt in ("a", "b"))
    assert one.batch_key == other.batch_key is not None
    assert job(COMPLETION, prompt=["a", "b"]).request.batch_key is None


@pytest.mark.parametrize(("options", "includes"), [({}, False), ({"stream_options": {"include_usage": True}}, True)])
def test_a_stream_s_usage_is_asked_for_and_whether_its_client_wants_it_is_kept(options, includes):
    streamed = job(COMPLETION, prompt="a", stream=True, max_tokens=5, **options)
    assert json.loads(streamed.call.body)["stream_options"] == {"include_usage": True}
    assert (streamed.stream, streamed.includes_usage, streamed.hides_usage) == (True, includes, not includes)
    assert streamed.max_tokens == 5


def test_who_wants_no_stream_has_nothing_hidden():
    assert not job(COMPLETION, prompt="a").hides_usage


def test_the_caller_s_key_stays_here():
    headers = chat("s", "u").call.headers
    assert headers == {"traceparent": "00-1", "content-type": "application/json", "x-request-id": "req"}


@pytest.mark.parametrize(
    ("route", "prompt", "field"),
    [
        (CHAT, {"messages": []}, "max_tokens"),
        (COMPLETION, {"prompt": "a"}, "max_tokens"),
        (RESPONSE, {"input": "a"}, "max_output_tokens"),
    ],
    ids=["chat", "completion", "response"],
)
def test_a_bound_is_sent_in_the_words_of_the_api_and_the_scheduler_counts_on_it(route, prompt, field):
    made = job(route, bound_tokens=128, **prompt)
    assert json.loads(made.call.body) == {"model": "llama", **prompt, field: 128}
    assert (made.max_tokens, made.request.length.cap) == (128, 128)


def test_only_those_of_one_bound_share_a_call():
    one, same, other = (job(COMPLETION, prompt="a", bound_tokens=bound).request.batch_key for bound in (64, 64, 128))
    assert one == same != other


def forecast(prompt_tokens=100):
    return Forecast(PredictionInput("chat", "llama"), prompt_tokens, LENGTH, "history")


@pytest.mark.parametrize(("level", "bound"), [(0.5, 64), (0.75, 128), (0.95, 256)])
def test_a_bound_is_the_quantile_rounded_up(level, bound):
    assert bound_of(forecast(), level, None) == bound


def test_there_is_no_bound_that_the_context_may_not_have_room_for():
    assert bound_of(forecast(prompt_tokens=500), 0.95, 1006) == 256
    assert bound_of(forecast(prompt_tokens=500), 0.95, 1005) is None
