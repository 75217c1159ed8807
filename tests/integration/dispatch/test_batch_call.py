"""Batches on a simulated static engine, over a real socket."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest

from backends.base import BackendSpec
from backends.registry import connect
from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from backends.simulator.text import text_of
from gateway.dispatch.context import RequestContext
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.protocol.openai import read_completion
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import OutOfMemory, Request, Returned
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from gateway.upstream.transport import Http1Transport
from tests.unit.gateway.batching_core import Core
from tests.unit.gateway.fake_engines import pool_of
from tests.unit.gateway.request_context import request_context

LENGTH = LengthQuantiles.of((1, 2, 3, 4, 5, 6))
PROMPT_TOKENS = 10


@dataclass
class BatchClient:
    """One client and the answer that it received."""

    context: RequestContext
    body: bytes = b""
    started: bool = False

    @property
    def text(self):
        return json.loads(self.body)["choices"][0]["text"]

    async def start(self, status, content_type, *, length):
        self.started = status == 200

    async def send(self, body, *, more):
        self.body += body


@pytest.fixture
def send(tmp_path):
    """Return a function that sends a batch with these answer lengths to an engine with this memory."""

    async def send(*lengths, kv_tokens, max_tokens=400, prompts=None):
        workload = tmp_path / "workload.jsonl"
        rows = [{"prompt": f"p{i}", "input_tokens": PROMPT_TOKENS, "output_tokens": n} for i, n in enumerate(lengths)]
        workload.write_text("".join(json.dumps(row) + "\n" for row in rows))
        prompts = prompts or [f"p{i}" for i in range(len(lengths))]
        now = asyncio.get_running_loop().time
        core: Any = Core(len(lengths), "gpu-0", "gpu-0")
        dispatcher, transport = Dispatcher(core, now), Http1Transport()
        config = EngineConfig(kind="static", kv_tokens=kv_tokens, speed=200.0, workload=workload)
        async with listening(config) as url:
            backend: Any = connect(BackendSpec("gpu-0", "static", url), transport, 10.0)
            relay = GenerationProxy(
                dispatcher, UpstreamClient(transport, Timeouts(5, 60, 10)), pool_of(backend), now, lambda *_: None
            )
            members = [BatchClient(request_context(now())) for _ in lengths]
            loop = asyncio.create_task(dispatcher.run())
            running = []
            for i, (member, prompt) in enumerate(zip(members, prompts, strict=True)):
                request = Request(str(i), config.model, PROMPT_TOKENS, LENGTH, now(), now() + 60, batch_key=1)
                fields = {"model": config.model, "prompt": prompt, "max_tokens": max_tokens}
                member.context.generation = generation = read_completion(json.dumps(fields).encode())
                upstream_request = UpstreamRequest("/v1/completions", {}, generation.body)
                running.append(relay.run(member.context, request, upstream_request, member))
            errors = await asyncio.gather(*running, return_exceptions=True)
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            await transport.aclose()
        return members, core, errors

    return send


async def test_each_request_gets_the_answer_to_its_own_prompt(send):
    lengths = (40, 50, 60, 400)
    members, core, _ = await send(*lengths, kv_tokens=10_000)
    assert [member.text for member in members] == [text_of(length) for length in lengths]
    assert sum(member.context.output_tokens for member in members) == sum(lengths)
    assert [member.context.input_tokens for member in members] == [PROMPT_TOKENS] * len(lengths)
    assert core.received(OutOfMemory) == core.received(Returned) == []


async def test_truncated_answer_is_counted_exactly(send):
    members, _, _ = await send(40, 390, kv_tokens=10_000, max_tokens=50)
    assert [member.context.finish_reason for member in members] == ["stop", "length"]
    assert [member.context.output_tokens for member in members] == [40, 50]


async def test_batch_that_exceeds_the_memory_is_served_in_halves(send):
    lengths = (390, 380, 370, 360)
    members, core, _ = await send(*lengths, kv_tokens=2 * (PROMPT_TOKENS + 390) + 100)
    assert core.received(OutOfMemory) == [OutOfMemory(("0", "1", "2", "3"))]
    assert [member.text for member in members] == [text_of(length) for length in lengths]


async def test_rejected_prompt_does_not_fail_the_others(send):
    members, core, (answered, refusal) = await send(40, 50, kv_tokens=10_000, prompts=["p0", ""])
    assert (refusal.status, refusal.type) == (400, "BadRequestError")
    assert (answered, members[0].text) == (None, text_of(40))
    assert core.received(Returned) == []
