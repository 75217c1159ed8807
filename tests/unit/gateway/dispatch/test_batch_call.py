import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest

from gateway.dispatch.context import RequestContext
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.errors import BackendRefused, BackendUnavailable, GatewayError
from gateway.fleet.breaker import FAILURES_TO_OPEN, Circuit
from gateway.fleet.pool import BackendPool
from gateway.protocol.openai import read_completion
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Finished, OutOfMemory, Request, Returned
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from tests.unit.gateway.batching_core import Core
from tests.unit.gateway.fake_engines import FakeBackend, FakeTransport, pool_of, whole
from tests.unit.gateway.request_context import request_context

LENGTH = LengthQuantiles.of((1, 2, 3, 4, 5, 6))
OUT_OF_MEMORY = whole(b'{"error": {"message": "CUDA out of memory."}}', status=500)
TOO_LONG = whole(b'{"error": {"message": "too long"}}', status=400)


def now():
    return asyncio.get_running_loop().time()


@dataclass
class BatchClient:
    """One client and the answer that it received."""

    context: RequestContext
    status: int | None = None
    kind: str | None = None
    body: bytes = b""
    ended: bool = False
    error: BaseException | None = None

    @property
    def started(self):
        return self.status is not None

    @property
    def answer(self):
        return json.loads(self.body)

    async def start(self, status, content_type, *, length):
        self.status, self.kind = status, content_type
        assert length is not None or "event-stream" in content_type

    async def send(self, body, *, more):
        self.body += body
        self.ended = not more


@dataclass
class Sent:
    """A batch that was sent, and its results."""

    members: list[BatchClient]
    core: Core
    transport: FakeTransport
    pool: BackendPool

    @property
    def bodies(self):
        return [json.loads(request.content) for _, request in self.transport.sent]

    @property
    def prompts(self):
        return [body["prompt"] for body in self.bodies]

    @property
    def texts(self):
        return [member.answer["choices"][0]["text"] for member in self.members]


def answer(*texts, tokens=6):
    choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
    usage = {"prompt_tokens": 10 * len(texts), "completion_tokens": tokens}
    return whole(json.dumps({"id": "x", "choices": choices, "usage": usage}).encode())


async def send(*prompts, leaves=(), streams=(), with_usage=False, pool=None, **scripts):
    """Send a batch of these prompts.

    Args:
        leaves: after how many seconds each client disconnects, one number each; clients without a number stay.
        streams: indices of the requests that ask for a stream.
    """
    core: Any
    core, transport = Core(len(prompts), "gpu0", "gpu1"), FakeTransport(**scripts)
    dispatcher = Dispatcher(core, now)
    upstream = UpstreamClient(transport, Timeouts(connect_s=5, first_byte_s=60, idle_s=10))
    pool = pool or pool_of(FakeBackend("gpu0"), FakeBackend("gpu1"))
    relay = GenerationProxy(dispatcher, upstream, pool, now, lambda *_: None)
    members = [BatchClient(request_context(now())) for _ in prompts]

    async def ask(number, member, prompt):
        request = Request(str(number), "llama", 10, LENGTH, now(), now() + 600, batch_key=1)
        body = json.dumps({"model": "llama", "prompt": prompt, "user": str(number)}).encode()
        headers = {"accept": "text/event-stream", "x-request-id": str(number)}
        generation = read_completion(body)
        generation.stream, generation.includes_usage = number in streams, with_usage
        member.context.generation = generation
        try:
            async with asyncio.timeout(leaves[number] if number < len(leaves) else None):
                await relay.run(member.context, request, UpstreamRequest("/v1/completions", headers, body), member)
        except (TimeoutError, GatewayError) as error:
            member.error = error

    loop = asyncio.create_task(dispatcher.run())
    async with asyncio.TaskGroup() as group:
        for number, prompt in enumerate(prompts):
            group.create_task(ask(number, members[number], prompt))
    await asyncio.sleep(0.01)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert transport.all_closed
    assert sorted(message.id for message in core.received(Finished)) == [str(number) for number in range(len(prompts))]
    return Sent(members, core, transport, pool)


async def test_a_batch_is_one_call_and_each_request_gets_its_own_answer():
    sent = await send("a", "b", "c", gpu0=[answer("A", "BB", "CCC")])
    assert sent.bodies == [{"model": "llama", "prompt": ["a", "b", "c"]}]
    assert sent.texts == ["A", "BB", "CCC"]
    assert all(member.ended and member.status == 200 and member.context.complete for member in sent.members)
    assert [member.context.output_tokens for member in sent.members] == [1, 2, 3]
    assert [member.context.input_tokens for member in sent.members] == [10, 10, 10]
    assert [message.output_tokens for message in sent.core.received(Finished)] == [1, 2, 3]


async def test_a_batch_has_the_first_request_s_headers_without_accept():
    sent = await send("a", "b", gpu0=[answer("A", "B")])
    headers = sent.transport.sent[0][1].headers
    assert headers["x-request-id"] == "0"
    assert "accept" not in headers


async def test_a_streaming_request_of_a_batch_gets_a_stream():
    sent = await send("a", "b", streams=[1], with_usage=True, gpu0=[answer("A", "B")])
    plain, stream = sent.members
    assert (plain.kind, stream.kind) == ("application/json", "text/event-stream; charset=utf-8")
    assert [line[:5] for line in stream.body.split(b"\n\n")] == [b"data:"] * 3 + [b""]
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert stream.context.first_byte_s is not None
    assert sent.bodies[0].keys() == {"model", "prompt"}


async def test_the_last_request_of_a_batch_is_sent_alone():
    sent = await send("a", gpu0=[answer("A")])
    assert sent.bodies == [{"model": "llama", "prompt": "a", "user": "0"}]
    assert sent.texts == ["A"]


async def test_a_client_that_leaves_does_not_delay_the_others():
    sent = await send("a", "b", "c", leaves=[1.0], gpu0=[5.0, answer("A", "B", "C")])
    disconnected, *others = sent.members
    assert isinstance(disconnected.error, TimeoutError)
    assert not disconnected.started
    assert [member.answer["choices"][0]["text"] for member in others] == ["B", "C"]
    assert now() < 6


async def test_the_call_is_cancelled_when_the_last_client_has_left():
    sent = await send("a", "b", leaves=[1.0, 2.0], gpu0=[5.0, answer("A", "B")])
    assert all(isinstance(member.error, TimeoutError) for member in sent.members)
    assert sent.transport.answers == []
    assert now() < 3


@pytest.mark.parametrize(
    "failure", [httpx2.ConnectError("refused"), whole(b"oops", status=500), whole(b"<html>"), answer("A"), 61.0]
)
async def test_after_a_failed_call_each_request_is_retried(failure):
    sent = await send("a", "b", gpu0=[failure], gpu1=[answer("A"), answer("B")])
    assert [(message.id, message.full) for message in sent.core.received(Returned)] == [("0", False), ("1", False)]
    assert sent.prompts == [["a", "b"], "a", "b"]
    assert sent.texts == ["A", "B"]
    assert [(member.context.backend, member.context.attempts) for member in sent.members] == [("gpu1", 1)] * 2


async def test_failed_call_of_a_batch_counts_as_one_failure_of_the_backend():
    prompts = [f"p{i}" for i in range(FAILURES_TO_OPEN + 1)]
    sent = await send(*prompts, gpu0=[httpx2.ReadError("reset")], gpu1=[answer("x")] * len(prompts))
    assert sent.texts == ["x"] * len(prompts)
    assert sent.pool.entries["gpu0"].circuit is Circuit.CLOSED


async def test_failed_calls_of_batches_open_the_circuit():
    pool = pool_of(FakeBackend("gpu0"), FakeBackend("gpu1"))
    for _ in range(FAILURES_TO_OPEN):
        assert pool.entries["gpu0"].circuit is Circuit.CLOSED
        await send("a", "b", pool=pool, gpu0=[httpx2.ReadError("reset")], gpu1=[answer("A"), answer("B")])
    assert pool.entries["gpu0"].circuit is Circuit.OPEN


async def test_a_full_engine_returns_all_requests_of_a_batch():
    full = whole(b'{"error": "the queue is full"}', status=503)
    sent = await send("a", "b", gpu0=[full], gpu1=[answer("A"), answer("B")])
    assert [message.full for message in sent.core.received(Returned)] == [True, True]
    assert [member.context.attempts for member in sent.members] == [0, 0]


async def test_only_the_refused_request_of_a_batch_gets_the_refusal():
    sent = await send("a", "b", gpu0=[TOO_LONG, TOO_LONG, answer("B")])
    assert sent.prompts == [["a", "b"], "a", "b"]
    refused, answered = sent.members
    assert isinstance(refused.error, BackendRefused)
    assert refused.error.message == "too long"
    assert answered.answer["choices"][0]["text"] == "B"
    assert sent.core.received(Returned) == []


async def test_batch_that_runs_out_of_memory_is_split():
    halves = [answer("A", "B"), answer("C", "D", "E")]
    sent = await send("a", "b", "c", "d", "e", gpu0=[OUT_OF_MEMORY, *halves])
    assert sent.core.received(OutOfMemory) == [OutOfMemory(("0", "1", "2", "3", "4"))]
    assert sent.prompts == [["a", "b", "c", "d", "e"], ["a", "b"], ["c", "d", "e"]]
    assert sent.texts == ["A", "B", "C", "D", "E"]
    assert [member.context.attempts for member in sent.members] == [0] * 5


async def test_batch_is_split_until_it_fits():
    script = [OUT_OF_MEMORY, OUT_OF_MEMORY, answer("C", "D"), answer("A"), answer("B")]
    sent = await send("a", "b", "c", "d", gpu0=script)
    assert sent.core.received(OutOfMemory) == [OutOfMemory(("0", "1", "2", "3")), OutOfMemory(("0", "1"))]
    assert sent.texts == ["A", "B", "C", "D"]


async def test_a_single_request_that_runs_out_of_memory_goes_to_another_backend():
    sent = await send("a", "b", gpu0=[OUT_OF_MEMORY, OUT_OF_MEMORY, answer("B")], gpu1=[answer("A")])
    assert [message.id for message in sent.core.received(Returned)] == ["0"]
    assert sent.texts == ["A", "B"]


async def test_a_request_that_has_left_is_not_split():
    script = [5.0, OUT_OF_MEMORY, answer("B"), answer("C")]
    sent = await send("a", "b", "c", leaves=[1.0], gpu0=script)
    assert sent.core.received(OutOfMemory) == [OutOfMemory(("1", "2"))]


async def test_the_last_request_of_a_batch_that_ran_out_of_memory_is_sent_alone():
    sent = await send("a", "b", leaves=[1.0], gpu0=[5.0, OUT_OF_MEMORY, answer("B")])
    assert sent.core.received(OutOfMemory) == []
    assert sent.prompts == [["a", "b"], "b"]
    assert sent.members[1].answer["choices"][0]["text"] == "B"


async def test_a_failure_of_the_last_backend_reaches_every_client():
    sent = await send("a", "b", gpu0=[httpx2.ReadError("reset")], gpu1=[httpx2.ReadError("reset")] * 6)
    assert all(isinstance(member.error, BackendUnavailable) for member in sent.members)
    assert [member.context.attempts for member in sent.members] == [3, 3]
