import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest

from backends.base import BackendUnreachableError, ModelCard, Snapshot
from gateway.api.asgi import EVENT_STREAM, KEEP_ALIVE, Limits
from gateway.api.auth import KeyAuthenticator, OpenAccess
from gateway.api.generation import Generations, RequestBuilder
from gateway.api.middleware import Middleware
from gateway.api.request_recorder import RequestRecorder
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.fleet.pool import BackendPool
from gateway.prediction.predictor import Forecaster, Predictor
from gateway.protocol.generation_request import ModelRules
from gateway.scheduling.messages import QueueLimits
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.storage.keys import hash_key
from gateway.telemetry.metrics import Metrics
from gateway.upstream.client import Timeouts, UpstreamClient
from tests.unit.gateway.fake_engines import DONE, LAST, STREAM, TOKEN, WHOLE, Answer, FakeBackend, FakeTransport, whole

LIMITS = Limits(max_body_bytes=10_000, max_text_bytes=1000, body_timeout_s=30.0)
SERVED = Snapshot((ModelCard("llama", 4096),))


class LoopClock:
    def monotonic(self):
        return asyncio.get_running_loop().time()

    def now(self):
        return datetime(2026, 1, 1, tzinfo=UTC)


class Response:
    """A client's response, and the record that was written about it."""

    def __init__(self, messages, records, sent):
        start, *parts = messages or [{"status": None, "headers": []}]
        self.status = start["status"]
        self.headers = {name.decode(): value.decode() for name, value in start["headers"]}
        self.body = b"".join(part["body"] for part in parts)
        self.record = records[0] if records else None
        self.records = records
        self.sent = sent

    @property
    def error(self):
        return json.loads(self.body)["error"]


def chat(**fields):
    return json.dumps({"model": "llama", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


async def ask(
    body=None,
    script=(),
    *,
    authenticator=None,
    method="POST",
    leaves_after_s=1e9,
    headers=None,
    backend=None,
    rules=None,
    keepalive_s=0.0,
    path="/v1/chat/completions",
):
    """One request through the whole route; the engine plays the script."""
    clock, metrics, predictor, records, messages = LoopClock(), Metrics(), Predictor(), [], []
    transport = FakeTransport(gpu=list(script))
    dispatcher = Dispatcher(Scheduler(policy_named("hrrn"), QueueLimits(10, 10**6)), clock.monotonic)
    backend = backend or FakeBackend("gpu", SERVED)
    pool = BackendPool(
        [backend], post=dispatcher.post, monotonic=clock.monotonic, interval_s=1.0, on_scrape_failure=lambda *_: None
    )
    for entry in pool.entries.values():
        await pool.scrape(entry)
    upstream = UpstreamClient(transport, Timeouts(connect_s=5, first_byte_s=60, idle_s=10))
    proxy = GenerationProxy(dispatcher, upstream, pool, clock.monotonic, lambda *_: None)
    recorder = RequestRecorder(records.append, predictor, metrics, store_prompts=False)
    forecaster = Forecaster(predictor, 1.0, lambda _: None)
    builder = RequestBuilder(60.0, {}, rules or ModelRules())
    middleware = Middleware(recorder, clock)
    generations = Generations(
        authenticator or OpenAccess(),
        pool,
        forecaster,
        proxy,
        middleware,
        replace(LIMITS, keepalive_s=keepalive_s),
        builder,
    )
    app = next(route.fn for route in generations.routes() if path in route.paths)
    incoming = [{"type": "http.request", "body": chat() if body is None else body, "more_body": False}]

    async def receive():
        if incoming:
            return incoming.pop()
        await asyncio.sleep(leaves_after_s)
        return {"type": "http.disconnect"}

    async def send(message):
        messages.append(message)

    scope = {
        "type": "http",
        "method": method,
        "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()],
    }
    loop = asyncio.create_task(dispatcher.run())
    try:
        await app(scope, receive, send)
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert transport.all_closed
    assert (dispatcher.scheduler.waiting, dispatcher.scheduler.running) == (0, 0)
    response: Any = Response(messages, records, transport.sent)
    response.answers_cut = metrics.registry.get_sample_value("magnus_fallbacks_total", {"cause": "answer_cut"}) or 0.0
    return response


async def upstream_body(response):
    return await response.sent[0][1].aread()


async def test_an_answer_has_headers_that_describe_the_request():
    response = await ask(script=[whole()], headers={"x-request-id": "req-1"})
    assert (response.status, response.body) == (200, WHOLE)
    assert response.headers["x-request-id"] == "req-1"
    assert response.headers["x-magnus-backend"] == "gpu"
    assert float(response.headers["x-magnus-queue-ms"]) == 0.0
    assert int(response.headers["x-magnus-predicted-tokens"]) >= 1
    assert (response.record.status, response.record.output_tokens) == ("ok", 3)


async def test_a_body_is_forwarded_byte_for_byte():
    body = b'{ "model":"llama", "messages":[ ], "x" : 1.50, "logit_bias":{"5": -1e2} }'
    assert await upstream_body(await ask(body, [whole()])) == body


async def test_token_counts_of_a_stream_are_requested_and_hidden_from_the_client():
    response = await ask(chat(stream=True), [Answer(*STREAM)])
    assert json.loads(await upstream_body(response))["stream_options"] == {"include_usage": True}
    assert response.body == TOKEN + TOKEN + LAST + DONE
    assert (response.record.output_tokens, response.record.input_tokens) == (3, 7)


async def test_a_client_that_requests_token_counts_gets_them():
    body = chat(stream=True, stream_options={"include_usage": True})
    response = await ask(body, [Answer(*STREAM)])
    assert await upstream_body(response) == body
    assert response.body == b"".join(STREAM)


async def test_callers_key_does_not_reach_the_engine():
    headers = {"authorization": "Bearer k1", "x-api-key": "k1", "cookie": "k1", "traceparent": "00-1"}
    response = await ask(script=[whole()], headers=headers)
    sent = response.sent[0][1].headers
    assert "k1" not in str(sent)
    assert sent["traceparent"] == "00-1"
    assert sent["x-request-id"] == response.record.id


@pytest.mark.parametrize("given", ["", "with space", "x" * 129, "ü"])
async def test_an_invalid_request_id_is_replaced(given):
    response = await ask(script=[whole()], headers={"x-request-id": given})
    assert response.headers["x-request-id"] == response.record.id


@pytest.mark.parametrize(
    ("headers", "body", "app"),
    [
        ({"x-app-id": "mail"}, chat(), "mail"),
        ({}, chat(), "anonymous"),
        ({}, chat(messages=[{"role": "system", "content": "Be brief."}]), "system-"),
        ({"x-app-id": "mail"}, chat(messages=[{"role": "system", "content": "Be brief."}]), "mail"),
    ],
)
async def test_the_header_or_the_system_prompt_names_the_application(headers, body, app):
    assert (await ask(body, [whole()], headers=headers)).record.app.startswith(app)


async def test_the_key_names_the_application():
    async def lookup(digest):
        return "mail" if digest == hash_key("k1") else None

    authenticator = KeyAuthenticator(lookup, LoopClock().monotonic)
    headers = {"authorization": "Bearer k1", "x-app-id": "chat"}
    assert (await ask(script=[whole()], authenticator=authenticator, headers=headers)).record.app == "mail"
    refused = await ask(authenticator=authenticator)
    assert (refused.status, refused.headers["www-authenticate"], refused.record) == (401, "Bearer", None)


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"body": b"no"}, 400, "invalid_request"),
        ({"body": b"[]"}, 400, "invalid_request"),
        ({"body": b'{"x": ' + b"[" * 2000 + b"]" * 2000 + b"}"}, 400, "invalid_request"),
        ({"headers": {"content-encoding": "gzip"}}, 400, "invalid_request"),
        ({"headers": {"content-encoding": "br"}}, 415, "unsupported_content_encoding"),
        ({"method": "GET"}, 405, "method_not_allowed"),
        ({"body": b" " * 10_001}, 413, "request_too_large"),
        ({"body": chat(messages=[{"role": "user", "content": "x" * 1001}])}, 413, "request_too_large"),
        ({"body": chat(model="mistral")}, 404, "model_not_found"),
        ({"script": [httpx2.ConnectError("no")] * 3}, 502, "backend_unavailable"),
        ({"script": [whole(b'{"error": {"message": "no", "code": "x"}}', status=422)]}, 422, "x"),
    ],
)
async def test_every_error_has_openai_s_format(asked, status, code):
    response = await ask(**asked)
    assert (response.status, response.error["code"]) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]


async def test_a_configured_model_whose_engine_is_away_is_not_reported_as_unknown():
    response = await ask(backend=FakeBackend("gpu", BackendUnreachableError("away")))
    assert (response.status, response.record.status, response.record.error_code) == (503, "rejected", "no_backend")


async def test_a_failure_in_a_stream_is_its_last_event():
    response = await ask(chat(stream=True), [Answer(TOKEN, httpx2.ReadError("reset"))])
    assert response.status == 200
    event = response.body.removeprefix(TOKEN)
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "backend_unavailable"
    assert b"[DONE]" not in response.body
    assert (response.record.status, response.record.output_tokens) == ("failed", 1)


async def test_a_client_that_disconnects_is_recorded_and_gets_nothing_more():
    response = await ask(chat(stream=True), [Answer(TOKEN, 9.0, TOKEN)], leaves_after_s=5.0)
    assert response.body == TOKEN
    assert (response.record.status, response.record.error_code) == ("cancelled", "client_gone")


async def test_a_client_that_disconnects_while_waiting_is_recorded():
    response = await ask(script=[whole(b'{"error": "the queue is full"}', status=503)] * 100, leaves_after_s=5.0)
    assert (response.status, response.record.status) == (None, "cancelled")


async def test_a_request_is_recorded_if_the_server_stops():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await ask(script=[5.0, whole()])


async def test_every_request_is_recorded_once():
    for script in ([whole()], [httpx2.ReadError("reset")], [Answer(TOKEN)]):
        assert len((await ask(script=script)).records) == 1


PREDICTED_BOUNDS = ModelRules(quantiles={"llama": 0.9})


async def test_a_configured_quantile_limits_an_answer_without_a_limit():
    response = await ask(script=[whole()], rules=PREDICTED_BOUNDS)
    bound = json.loads(await upstream_body(response))["max_tokens"]
    assert bound % 64 == 0
    assert bound >= int(response.headers["x-magnus-predicted-tokens"])
    assert response.record.max_tokens is None  # the client's value
    assert response.answers_cut == 1  # this answer ended with "length", which is counted


async def test_a_request_with_a_limit_keeps_it():
    body = chat(max_tokens=7)
    response = await ask(body, [whole()], rules=PREDICTED_BOUNDS)
    assert await upstream_body(response) == body
    assert response.answers_cut == 0


async def test_the_engine_gets_a_unique_id_and_the_client_its_own():
    response = await ask(chat(request_id="mine"), [whole()], headers={"x-request-id": "mine"})
    assert (response.headers["x-request-id"], response.record.request_id) == ("mine", "mine")
    assert response.sent[0][1].headers["x-request-id"] == response.record.id != "mine"
    assert json.loads(await upstream_body(response))["request_id"] == response.record.id


async def test_a_body_without_a_model_goes_to_the_only_one_with_its_name():
    body = json.dumps({"messages": []}).encode()
    response = await ask(body, [whole()])
    assert (response.status, response.record.model) == (200, "llama")
    assert json.loads(await upstream_body(response)) == {"messages": [], "model": "llama"}


async def test_a_body_without_a_model_is_rejected_if_there_are_several():
    served = Snapshot((ModelCard("llama", 4096), ModelCard("mistral", 4096)))
    response = await ask(json.dumps({"messages": []}).encode(), backend=FakeBackend("gpu", served))
    assert (response.status, response.error["param"]) == (400, "model")


async def test_an_unknown_model_is_reported_before_the_rest_is_decoded():
    deep = b'{"model": "mistral", "messages": [{"content": %b}]}' % (b"[" * 500 + b"]" * 500)
    assert (await ask(deep)).error["code"] == "model_not_found"
    assert (await ask(chat(model="mistral", messages=[{"content": "x" * 1001}]))).error["code"] == "model_not_found"


async def test_token_ids_count_as_text():
    body = chat(prompt=[1] * 200)
    assert (await ask(body, path="/v1/completions")).error["code"] == "request_too_large"


BEFORE_DONE = (b'data: {"choices":[{"delta":{"role":"assistant"},"finish_reason":null}]}\n\n', LAST, DONE)


async def test_a_stream_that_waits_gets_comments_and_then_its_answer():
    response = await ask(chat(stream=True), [40.0, Answer(*BEFORE_DONE)], keepalive_s=15.0)
    assert response.body == 2 * KEEP_ALIVE + b"".join(BEFORE_DONE)
    assert (response.status, response.headers["content-type"]) == (200, EVENT_STREAM)
    assert response.record.status == "ok"
    assert response.record.ttft_ms == 40_000.0


async def test_an_error_after_a_comment_is_an_event():
    response = await ask(
        chat(stream=True), [20.0, whole(b'{"error": {"message": "no"}}', status=400)], keepalive_s=15.0
    )
    comment, event = response.body[: len(KEEP_ALIVE)], response.body[len(KEEP_ALIVE) :]
    assert (response.status, comment) == (200, KEEP_ALIVE)
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "no"
    assert response.record.http_status == 400


async def test_an_error_before_the_first_comment_has_its_status():
    script = [10.0, whole(b'{"error": {"message": "no"}}', status=400)]
    assert (await ask(chat(stream=True), script, keepalive_s=15.0)).status == 400


@pytest.mark.parametrize(("body", "keepalive_s"), [(chat(), 15.0), (chat(stream=True), 0.0)])
async def test_no_comment_is_sent_to_others(body, keepalive_s):
    response = await ask(body, [40.0, whole()], keepalive_s=keepalive_s)
    assert response.body == WHOLE


async def test_json_after_a_comment_becomes_an_event():
    response = await ask(chat(stream=True), [20.0, whole(b'{"choices":\n[]}')], keepalive_s=15.0)
    assert response.body == KEEP_ALIVE + b'data: {"choices":\ndata: []}\n\n'


async def test_an_engine_that_refuses_stream_options_gets_the_request_without_them():
    refusal = whole(b'{"error": {"message": "extra_forbidden: stream_options"}}', status=400)
    response = await ask(chat(stream=True), [refusal, Answer(TOKEN, TOKEN, LAST, DONE)])
    assert (response.status, response.record.status) == (200, "ok")
    assert response.record.output_tokens == 3
    assert b"stream_options" not in await response.sent[1][1].aread()
