import asyncio
from dataclasses import dataclass, field

import httpx2
import pytest

from gateway.dispatch.context import RequestContext
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.dispatch.retry_budget import MAX_ATTEMPTS, RetryBudget
from gateway.errors import (
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    GatewayError,
    ProtocolError,
    QueueTimeout,
)
from gateway.fleet.breaker import FAILURES_TO_OPEN, Circuit, fingerprint_of
from gateway.fleet.pool import BackendPool
from gateway.protocol import sse
from gateway.protocol.api_formats import CHAT, MESSAGES
from gateway.protocol.generation_request import GenerationRequest
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import BackendObserved, BackendState, QueueLimits, Request
from gateway.scheduling.policies import policy_named
from gateway.scheduling.scheduler import Scheduler
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from tests.unit.gateway.fake_engines import (
    DONE,
    ERROR,
    LAST,
    STREAM,
    TOKEN,
    USAGE,
    WHOLE,
    Answer,
    FakeBackend,
    FakeTransport,
    pool_of,
    whole,
)
from tests.unit.gateway.request_context import request_context

BROKEN = httpx2.ReadError("reset")
FULL = whole(b'{"error": "the queue is full"}', status=503)


def now():
    return asyncio.get_running_loop().time()


@dataclass
class FakeClient:
    """Records what it receives; waits `pause_s` for every part."""

    pause_s: float = 0.0
    starts: list[tuple[int, str, int | None]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    ended: bool = False

    @property
    def started(self):
        return bool(self.starts)

    @property
    def body(self):
        return b"".join(self.parts)

    async def start(self, status, content_type, *, length):
        self.starts.append((status, content_type, length))

    async def send(self, body, *, more):
        await asyncio.sleep(self.pause_s)
        self.parts.append(body)
        self.ended = not more


@dataclass
class Relayed:
    """The outcome of one request."""

    client: FakeClient
    context: RequestContext
    transport: FakeTransport
    failures: list[tuple[str, GatewayError]]
    error: GatewayError | None = None
    pool: BackendPool | None = None


async def relay(
    *,
    client=None,
    hide_usage=False,
    timeout_s=60.0,
    leave_after_s=None,
    max_concurrency=None,
    budget=None,
    priority=False,
    takes_priority=False,
    api_format=CHAT,
    body=b"{}",
    fingerprint=None,
    **scripts,
):
    """Send one request to engines that play these scripts; check that connections are closed and the queue is empty."""
    transport = FakeTransport(**scripts)
    relayed = Relayed(client or FakeClient(), request_context(now(), api_format), transport, [])
    relayed.context.fingerprint = fingerprint
    dispatcher = Dispatcher(Scheduler(policy_named("hrrn"), QueueLimits(10, 10**6)), now)
    for name in scripts:
        state = BackendState(name, frozenset({"llama"}), healthy=True, max_concurrency=max_concurrency)
        dispatcher.post(BackendObserved(state))
    upstream = UpstreamClient(transport, Timeouts(connect_s=5, first_byte_s=60, idle_s=10))
    relayed.pool = pool_of(*(FakeBackend(name, priority=priority) for name in scripts))
    proxy = GenerationProxy(
        dispatcher,
        upstream,
        relayed.pool,
        now,
        lambda *failure: relayed.failures.append(failure),
        budget=budget,
    )
    relayed.context.generation = GenerationRequest(
        body=body,
        model="llama",
        stream=hide_usage,
        includes_usage=False,
        user=None,
        max_tokens=None,
        sequences=1,
        takes_priority=takes_priority,
    )
    request = Request("r", "llama", 10, LengthQuantiles.of((1, 2, 3, 4, 5, 6)), now(), now() + timeout_s)
    loop = asyncio.create_task(dispatcher.run())
    try:
        async with asyncio.timeout(leave_after_s):
            await proxy.run(relayed.context, request, UpstreamRequest("/v1/completions", {}, body), relayed.client)
    except GatewayError as error:
        relayed.error = error
    finally:
        await asyncio.sleep(0.01)
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    assert transport.all_closed
    assert (dispatcher.scheduler.waiting, dispatcher.scheduler.running) == (0, 0)
    return relayed


async def test_whole_answer_is_forwarded_unchanged():
    relayed = await relay(gpu0=[whole()])
    assert relayed.error is None
    assert relayed.client.starts == [(200, "application/json", len(WHOLE))]
    assert (relayed.client.body, relayed.client.ended) == (WHOLE, True)
    context = relayed.context
    assert (context.backend, context.input_tokens, context.output_tokens, context.finish_reason) == (
        "gpu0",
        7,
        3,
        "length",
    )


async def test_stream_is_forwarded_unchanged():
    relayed = await relay(gpu0=[Answer(*STREAM)])
    assert relayed.error is None
    assert relayed.client.starts == [(200, "text/event-stream", None)]
    assert (relayed.client.body, relayed.client.ended) == (b"".join(STREAM), True)
    context = relayed.context
    assert (context.events, context.input_tokens, context.output_tokens, context.finish_reason) == (3, 7, 3, "stop")


async def test_usage_that_only_the_gateway_requested_is_hidden():
    relayed = await relay(hide_usage=True, gpu0=[Answer(*STREAM)])
    assert relayed.client.body == TOKEN + TOKEN + LAST + DONE
    assert relayed.context.output_tokens == 3


async def test_the_stages_of_a_request_are_timed():
    context = (await relay(gpu0=[1.0, Answer(2.0, TOKEN, 3.0, LAST, DONE)])).context
    assert (context.arrival_s, context.dispatched_s, context.first_byte_s) == (0.0, 0.0, pytest.approx(3.0))


@pytest.mark.parametrize(
    "first",
    [
        httpx2.ConnectError("refused"),
        Answer(BROKEN),
        Answer(ERROR),
        Answer(TOKEN[:20]),
        Answer(DONE[:5], BROKEN),
        Answer(),
        whole(b"<html>"),
        whole(b'{"error": {"message": "out of memory"}}'),
        whole(b"oops", status=500),
        61.0,
    ],
    ids=["refused", "broken", "error event", "cut event", "broken event", "empty", "no json", "error", "500", "silent"],
)
async def test_a_failure_before_the_first_byte_is_retried_on_another_backend(first):
    relayed = await relay(timeout_s=600.0, gpu0=[first], gpu1=[Answer(*STREAM)])
    assert relayed.error is None
    assert relayed.client.body == b"".join(STREAM)
    assert relayed.transport.hosts == ["gpu0", "gpu1"]
    assert [name for name, _ in relayed.failures] == ["gpu0"]
    assert (relayed.context.backend, relayed.context.attempts) == ("gpu1", 1)


@pytest.mark.parametrize(
    ("rest", "error"),
    [
        ([BROKEN], BackendUnavailable),
        ([ERROR], ProtocolError),
        ([], BackendUnavailable),
        ([TOKEN[:-3]], BackendUnavailable),
        ([11.0, DONE], BackendTimeout),
    ],
    ids=["broken", "error event", "no end", "cut event", "silent"],
)
async def test_a_failure_after_the_first_byte_reaches_the_client(rest, error):
    relayed = await relay(gpu0=[Answer(TOKEN, *rest)], gpu1=[Answer(*STREAM)])
    assert type(relayed.error) is error
    assert relayed.transport.hosts == ["gpu0"]
    assert relayed.client.body == TOKEN
    assert not relayed.client.ended
    assert (relayed.context.events, relayed.context.output_tokens) == (1, 1)
    assert [name for name, _ in relayed.failures] == ["gpu0"]


async def test_a_token_before_an_error_in_the_same_chunk_is_forwarded():
    relayed = await relay(gpu0=[Answer(TOKEN + ERROR + TOKEN + DONE)])
    assert relayed.client.body == TOKEN
    assert "out of memory" in relayed.error.message


async def test_done_after_an_error_is_a_failure():
    relayed = await relay(gpu0=[Answer(TOKEN, ERROR, DONE)])
    assert isinstance(relayed.error, ProtocolError)


@pytest.mark.parametrize("end", [(LAST,), (DONE,), (LAST, USAGE), (LAST, b"data: [DONE]")])
async def test_a_stream_may_end_with_done_or_a_finish_reason(end):
    relayed = await relay(gpu0=[Answer(TOKEN, *end)])
    assert relayed.error is None
    assert (relayed.client.body, relayed.client.ended) == (TOKEN + b"".join(end), True)


async def test_an_engine_s_refusal_is_passed_on():
    relayed = await relay(gpu0=[whole(b'{"error": {"message": "too long"}}', status=400)], gpu1=[whole()])
    assert isinstance(relayed.error, BackendRefused)
    assert (relayed.error.status, relayed.error.message) == (400, "too long")
    assert relayed.transport.hosts == ["gpu0"]


async def test_a_full_engine_is_tried_repeatedly():
    relayed = await relay(gpu0=[*[FULL] * 10, whole()])
    assert relayed.error is None
    assert relayed.transport.hosts == ["gpu0"] * 11
    assert relayed.context.attempts == 0
    assert now() < 10


async def test_a_request_to_a_full_engine_goes_to_another_one():
    relayed = await relay(gpu0=[FULL], gpu1=[whole()])
    assert relayed.transport.hosts == ["gpu0", "gpu1"]
    assert now() < 0.1


async def test_engines_that_stay_full_lead_to_a_timeout():
    relayed = await relay(gpu0=[FULL] * 100, timeout_s=5.0)
    assert isinstance(relayed.error, QueueTimeout)
    assert 5 <= now() < 6


async def test_after_all_backends_failed_the_client_gets_the_last_error():
    relayed = await relay(gpu0=[BROKEN], gpu1=[whole(b"<html>")])
    assert isinstance(relayed.error, ProtocolError)
    assert not relayed.client.started


async def test_a_timeout_of_the_engine_wins_over_the_queue_timeout():
    relayed = await relay(timeout_s=30.0, gpu0=[61.0], gpu1=[whole()])
    assert isinstance(relayed.error, BackendTimeout)


async def test_a_failure_wins_over_full_engines():
    relayed = await relay(timeout_s=5.0, gpu0=[BROKEN], gpu1=[FULL] * 100)
    assert isinstance(relayed.error, BackendUnavailable)


async def test_the_number_of_attempts_is_limited():
    scripts = {f"gpu{i}": [whole(b"oops", status=500)] for i in range(2 * MAX_ATTEMPTS)}
    relayed = await relay(**scripts)
    assert len(relayed.transport.hosts) == len(set(relayed.transport.hosts)) == MAX_ATTEMPTS
    assert isinstance(relayed.error, BackendRefused)
    assert relayed.context.attempts == MAX_ATTEMPTS


async def test_counts_of_a_failed_attempt_are_discarded():
    relayed = await relay(gpu0=[Answer(USAGE + ERROR)], gpu1=[Answer(TOKEN, LAST, DONE)], hide_usage=True)
    assert relayed.error is None
    assert (relayed.context.usage, relayed.context.events) == (None, 2)


async def test_an_event_without_end_is_a_protocol_error(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    relayed = await relay(gpu0=[Answer(b"data: " + b"x" * 200)])
    assert isinstance(relayed.error, ProtocolError)
    assert "more than 100 bytes" in relayed.error.message


@pytest.mark.parametrize(
    "script", [[5.0, whole()], [Answer(TOKEN, 5.0, TOKEN)], [Answer(5.0, WHOLE, kind="application/json")]]
)
async def test_a_client_that_leaves_cancels_the_engine_s_request(script):
    with pytest.raises(TimeoutError):
        await relay(gpu0=script, leave_after_s=1.0)
    assert now() < 2


@pytest.mark.parametrize("answer", [whole(), Answer(*STREAM)])
async def test_a_slow_client_gets_the_whole_answer(answer):
    relayed = await relay(client=FakeClient(pause_s=100.0), gpu0=[answer])
    assert relayed.error is None
    assert relayed.client.ended


async def test_a_failure_is_reported_with_its_error():
    relayed = await relay(gpu0=[BROKEN])
    assert isinstance(relayed.error, BackendUnavailable)
    assert relayed.failures[0][1] is relayed.error


# Retry budget


async def test_without_retry_budget_the_client_gets_the_failure():
    budget = RetryBudget()
    while budget.take(now()):
        continue
    relayed = await relay(budget=budget, gpu0=[BROKEN], gpu1=[whole()])
    assert isinstance(relayed.error, BackendUnavailable)
    assert relayed.transport.hosts == ["gpu0"]


async def test_a_full_engine_takes_no_retry_budget():
    budget = RetryBudget()
    while budget.take(now()):
        continue
    relayed = await relay(budget=budget, gpu0=[FULL], gpu1=[whole()])
    assert relayed.error is None


async def test_a_refusal_takes_no_retry_budget():
    budget = RetryBudget()
    while budget.take(now()):
        continue
    for _ in range(5):  # each adds a fraction of a retry
        await relay(budget=budget, gpu0=[whole(b'{"error": "no"}', status=400)])
    assert budget.take(now())


# The priority field


async def sent_body(relayed):
    return await relayed.transport.sent[0][1].aread()


async def test_the_rank_is_sent_to_an_engine_with_priorities_and_no_other_byte_changes():
    body = b'{ "model":"llama" , "x": 1.50}'
    relayed = await relay(body=body, takes_priority=True, priority=True, gpu0=[whole()])
    sent = await sent_body(relayed)
    assert sent.startswith(body[:-1] + b',"priority":')
    assert sent.endswith(b"}")


@pytest.mark.parametrize(
    ("takes_priority", "priority", "body"),
    [(True, False, b"{ }"), (False, True, b"{ }")],
    ids=["engine", "api"],
)
async def test_no_rank_is_added_if_it_has_no_effect(takes_priority, priority, body):
    relayed = await relay(body=body, takes_priority=takes_priority, priority=priority, gpu0=[whole()])
    assert await sent_body(relayed) == body


# Anthropic's API


START = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n'
PIECE = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n'
END = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":'
    b'{"output_tokens":2}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
)


async def test_a_stream_of_messages_ends_with_its_own_event():
    relayed = await relay(api_format=MESSAGES, gpu0=[Answer(START, PIECE, PIECE, END)])
    assert relayed.error is None
    assert relayed.client.body == START + PIECE + PIECE + END
    context = relayed.context
    assert (context.events, context.input_tokens, context.output_tokens, context.finish_reason) == (2, 7, 2, "stop")


async def test_stream_of_messages_without_its_stop_event_failed():
    relayed = await relay(api_format=MESSAGES, gpu0=[Answer(START, PIECE, DONE[:0])])
    assert isinstance(relayed.error, BackendUnavailable)
    assert (relayed.context.input_tokens, relayed.context.output_tokens) == (7, 1)


async def test_a_whole_message_is_read():
    body = b'{"type":"message","stop_reason":"max_tokens","usage":{"input_tokens":7,"output_tokens":3}}'
    relayed = await relay(api_format=MESSAGES, gpu0=[whole(body)])
    assert (relayed.client.body, relayed.context.output_tokens, relayed.context.finish_reason) == (body, 3, "length")


# A request that is at fault


def open_if_one_more_fails(pool, name):
    """Fail a backend with so many other requests that one more failure opens its circuit."""
    for number in range(FAILURES_TO_OPEN - 1):
        pool.record_failure(name, ProtocolError("failed"), now(), fingerprint_of("other", number))


@pytest.mark.parametrize(
    "failed", [whole(b"oops", status=500), whole(b'{"error": "no"}'), Answer(ERROR)], ids=["500", "body", "event"]
)
async def test_request_that_fails_alike_on_several_engines_counts_against_none(failed):
    relayed = await relay(
        fingerprint=fingerprint_of("app", "bad"),
        gpu0=[failed],
        gpu1=[Answer(*failed.script, status=failed.status, kind=failed.kind)],
    )
    assert relayed.transport.hosts == ["gpu0", "gpu1"]
    for name in ("gpu0", "gpu1"):
        open_if_one_more_fails(relayed.pool, name)
        assert relayed.pool.entries[name].circuit is Circuit.CLOSED


async def test_request_that_only_one_engine_fails_counts_against_it():
    relayed = await relay(fingerprint=fingerprint_of("app", "good"), gpu0=[whole(b"oops", status=500)], gpu1=[whole()])
    open_if_one_more_fails(relayed.pool, "gpu0")
    assert relayed.pool.entries["gpu0"].circuit is not Circuit.CLOSED


# Comments are no answer


COMMENT = b": keep-alive\n\n"


@pytest.mark.parametrize("rest", [[ERROR], [BROKEN], [], [61.0]], ids=["error event", "broken", "empty", "silent"])
async def test_a_failure_after_comments_is_retried_on_another_backend(rest):
    relayed = await relay(timeout_s=600.0, gpu0=[Answer(COMMENT, b"\n\n", COMMENT, *rest)], gpu1=[Answer(*STREAM)])
    assert relayed.error is None
    assert relayed.client.body == b"".join(STREAM)
    assert relayed.transport.hosts == ["gpu0", "gpu1"]


async def test_the_first_byte_of_an_answer_is_not_that_of_a_comment():
    context = (await relay(gpu0=[Answer(COMMENT, 3.0, COMMENT, 3.0, TOKEN, LAST, DONE)])).context
    assert context.first_byte_s == pytest.approx(6.0)


async def test_comments_within_an_answer_are_forwarded():
    relayed = await relay(gpu0=[Answer(TOKEN, COMMENT, LAST, DONE)])
    assert relayed.client.body == TOKEN + COMMENT + LAST + DONE


@pytest.mark.parametrize(
    "error", [b"event: error\ndata: oops\n\n", b'data: {"error":["oops"]}\n\n', b'event:error\ndata: {"code":1}\n\n']
)
async def test_an_error_event_of_any_shape_is_a_failure(error):
    relayed = await relay(gpu0=[Answer(TOKEN, error, DONE)])
    assert isinstance(relayed.error, ProtocolError)
    assert relayed.client.body == TOKEN


async def test_an_error_that_says_nothing_is_no_failure():
    event = b'data: {"error":{},"choices":[{"finish_reason":"stop"}]}\n\n'
    assert (await relay(gpu0=[Answer(TOKEN, event, DONE)])).error is None


@pytest.mark.parametrize("body", [b'{"choices":7}', b"text", b'{"error":{}}', b'{"usage":{"prompt_tokens":1.5}}'])
async def test_an_answer_that_is_not_understood_is_passed_on(body):
    relayed = await relay(gpu0=[whole(body)], gpu1=[whole()])
    assert (relayed.error, relayed.client.body, relayed.context.output_tokens) == (None, body, 0)
    assert relayed.transport.hosts == ["gpu0"]


@pytest.mark.parametrize("body", [b"", b" \n", b'{"error":["no"]}', b'{"error":1}'])
async def test_no_answer_and_an_error_of_any_shape_are_retried(body):
    assert (await relay(gpu0=[whole(body)], gpu1=[whole()])).transport.hosts == ["gpu0", "gpu1"]


async def test_the_last_event_needs_no_blank_line():
    tail = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}'
    relayed = await relay(gpu0=[Answer(TOKEN, tail)])
    assert (relayed.error, relayed.client.body, relayed.context.finish_reason) == (None, TOKEN + tail, "stop")


# Token counts that an engine refuses


REFUSAL = b'{"error": {"message": "unknown field: stream_options"}}'


@pytest.mark.parametrize("answer", [whole(REFUSAL, status=400), whole(b'{"detail": []}', status=422)])
async def test_an_engine_that_refuses_stream_options_is_asked_without_them(answer):
    relayed = await relay(hide_usage=True, gpu0=[answer, Answer(TOKEN, LAST, DONE)])
    assert (relayed.error, relayed.context.output_tokens) == (None, 2)
    assert relayed.client.body == TOKEN + LAST + DONE
    assert len(relayed.transport.sent) == 2


async def test_another_refusal_is_passed_on_at_once():
    relayed = await relay(hide_usage=True, gpu0=[whole(b'{"error": {"message": "too long"}}', status=400)])
    assert isinstance(relayed.error, BackendRefused)
    assert len(relayed.transport.sent) == 1


TOO_LONG = b'{"error": {"message": "This model\'s maximum context length is 4096 tokens", "type": "BadRequestError"}}'


async def test_request_that_is_too_long_for_one_engine_goes_to_a_longer_one(monkeypatch):
    monkeypatch.setattr(BackendPool, "serves_longer", lambda self, model, than: than == "gpu0")
    relayed = await relay(gpu0=[whole(TOO_LONG, status=400)], gpu1=[whole()])
    assert (relayed.error, relayed.transport.hosts) == (None, ["gpu0", "gpu1"])


async def test_request_that_is_too_long_for_all_engines_gets_their_refusal(monkeypatch):
    monkeypatch.setattr(BackendPool, "serves_longer", lambda self, model, than: than == "gpu0")
    relayed = await relay(gpu0=[whole(TOO_LONG, status=400)], gpu1=[whole(TOO_LONG, status=400)])
    assert (relayed.error.status, relayed.transport.hosts) == (400, ["gpu0", "gpu1"])


async def test_engine_that_takes_no_connection_for_a_moment_costs_no_request():
    relayed = await relay(gpu0=[httpx2.ConnectError("refused"), whole()])
    assert (relayed.error, relayed.transport.hosts) == (None, ["gpu0", "gpu0"])
