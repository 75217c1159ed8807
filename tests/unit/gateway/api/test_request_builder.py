import json

import pytest

from gateway.api.generation import MIN_PREFIX_TOKENS, RequestBuilder, bound_of
from gateway.prediction.prediction_input import PredictionInput
from gateway.prediction.predictor import Forecast
from gateway.protocol.api_formats import CHAT, COMPLETIONS, RESPONSES
from gateway.protocol.generation_request import ModelRules, read_routing
from gateway.scheduling.length import LengthQuantiles
from tests.unit.gateway.request_context import request_context

LENGTH = LengthQuantiles.of((10, 20, 40, 80, 150, 200))
BUILDER = RequestBuilder(60.0, {"mail": -3, "reports": 5}, ModelRules())


class Built:
    """A request that was parsed and built."""

    def __init__(self, api_format, prompt_tokens=1000, app="chat", bound_tokens=None, **fields):
        context = request_context(7.0, api_format, app=app)
        body = json.dumps({"model": "llama", **fields}).encode()
        self.generation = BUILDER.read(context, body, read_routing(body, context.id)[1], "llama")
        if bound_tokens is not None:
            self.generation.bound_answer(bound_tokens)
        forecast = Forecast(PredictionInput(app, "llama"), prompt_tokens, LENGTH, "history")
        headers = {"authorization": "Bearer k1", "traceparent": "00-1"}
        self.request, self.upstream = BUILDER.build(context, self.generation, forecast, headers)


def chat(*contents, **fields):
    roles = ["system", *["user", "assistant"] * len(contents)]
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return Built(CHAT, messages=messages, **fields)


def test_the_scheduler_s_request_has_the_known_values():
    request = chat("s", "u", n=3).request
    assert (request.id, request.model, request.prompt_tokens, request.length) == ("id", "llama", 1000, LENGTH)
    assert (request.arrival_s, request.deadline_s, request.sequences) == (7.0, 67.0, 3)


@pytest.mark.parametrize(("app", "priority"), [("mail", -3), ("reports", 5), ("chat", 0)])
def test_a_request_has_the_priority_of_its_application(app, priority):
    assert chat("s", "u", app=app).request.priority == priority


def test_the_next_turn_of_a_conversation_shares_the_prefix_of_the_last_one():
    first = chat("s" * 500, "u" * 500).request.prefixes
    second = chat("s" * 500, "u" * 500, "a" * 500, "u" * 500).request.prefixes
    assert first[0].key in {prefix.key for prefix in second}
    assert [prefix.tokens for prefix in second] == sorted((prefix.tokens for prefix in second), reverse=True)
    assert second[0].tokens == 1000
    assert next(prefix.tokens for prefix in second if prefix.key == first[0].key) == pytest.approx(500, rel=0.1)


def test_short_prefixes_are_left_out():
    assert all(prefix.tokens >= MIN_PREFIX_TOKENS for prefix in chat("s", "u" * 500).request.prefixes)
    assert chat("s", "u", prompt_tokens=20).request.prefixes == ()


def test_text_completions_may_share_a_call_and_chats_may_not():
    assert chat("s", "u").request.batch_key is None
    one, other = (Built(COMPLETIONS, prompt=prompt, max_tokens=5).request for prompt in ("a", "b"))
    assert one.batch_key == other.batch_key is not None
    assert Built(COMPLETIONS, prompt=["a", "b"]).request.batch_key is None


@pytest.mark.parametrize(("options", "includes"), [({}, False), ({"stream_options": {"include_usage": True}}, True)])
def test_token_counts_of_a_stream_are_requested_and_the_client_s_wish_is_kept(options, includes):
    streamed = Built(COMPLETIONS, prompt="a", stream=True, max_tokens=5, **options)
    assert json.loads(streamed.upstream.body)["stream_options"] == {"include_usage": True}
    assert (streamed.generation.stream, streamed.generation.includes_usage, streamed.generation.hides_usage) == (
        True,
        includes,
        not includes,
    )
    assert streamed.generation.answer_limit == 5


@pytest.mark.parametrize("model", [None, ""])
def test_a_body_without_a_model_gets_the_only_one(model):
    assert json.loads(chat("s", "u", model=model).upstream.body)["model"] == "llama"


def test_a_model_of_another_type_is_left_to_the_engine():
    built = chat("s", "u", model=7)
    assert (json.loads(built.upstream.body)["model"], built.request.model) == (7, "llama")


def test_a_client_chooses_neither_priority_nor_request_id_of_an_engine():
    sent = json.loads(chat("s", "u", priority=-9, request_id="mine").upstream.body)
    assert "priority" not in sent
    assert sent["request_id"] == "id"


def test_without_a_stream_nothing_is_hidden():
    assert not Built(COMPLETIONS, prompt="a").generation.hides_usage


def test_the_client_s_key_is_not_forwarded():
    headers = chat("s", "u").upstream.headers
    assert headers == {"traceparent": "00-1", "content-type": "application/json", "x-request-id": "id"}


@pytest.mark.parametrize(
    ("api_format", "prompt", "field"),
    [
        (CHAT, {"messages": []}, "max_tokens"),
        (COMPLETIONS, {"prompt": "a"}, "max_tokens"),
        (RESPONSES, {"input": "a"}, "max_output_tokens"),
    ],
    ids=["chat", "completion", "response"],
)
def test_a_predicted_limit_is_set_in_the_api_s_field_and_for_the_scheduler(api_format, prompt, field):
    made = Built(api_format, bound_tokens=128, **prompt)
    assert json.loads(made.upstream.body) == {"model": "llama", **prompt, field: 128}
    assert (made.generation.answer_limit, made.request.length.cap) == (128, 128)


def test_only_requests_with_equal_limits_share_a_call():
    one, same, other = (Built(COMPLETIONS, prompt="a", bound_tokens=bound).request.batch_key for bound in (64, 64, 128))
    assert one == same != other


def forecast(prompt_tokens=100):
    return Forecast(PredictionInput("chat", "llama"), prompt_tokens, LENGTH, "history")


@pytest.mark.parametrize(("level", "bound"), [(0.5, 64), (0.75, 128), (0.95, 256)])
def test_a_predicted_limit_is_the_quantile_rounded_up(level, bound):
    assert bound_of(forecast(), level, None) == bound


def test_there_is_no_predicted_limit_that_may_exceed_the_context():
    assert bound_of(forecast(prompt_tokens=500), 0.95, 1006) == 256
    assert bound_of(forecast(prompt_tokens=500), 0.95, 1005) is None
