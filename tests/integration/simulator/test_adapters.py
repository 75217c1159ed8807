"""The gateway's adapters read a simulated engine like a real one."""

import asyncio

import httpx2
import pytest

from backends.base import BackendSpec
from backends.registry import connect


@pytest.fixture
async def scrape():
    async with httpx2.AsyncHTTPTransport() as transport:

        async def read(client, kind):
            return await connect(BackendSpec("gpu-0", kind, str(client.base_url)), transport, timeout_s=10.0).scrape()

        yield read


@pytest.mark.parametrize("kind", ["vllm", "tgi", "static"])
async def test_snapshot_contains_memory_and_load(serve, scrape, until, kind, tmp_path):
    workload = tmp_path / "long.jsonl"
    workload.write_text('{"prompt": "hello", "input_tokens": 20, "output_tokens": 700}\n')
    client = await serve(kind=kind, kv_tokens=1600, speed=1.0, workload=workload)
    idle = await scrape(client, kind)
    request = asyncio.create_task(client.post("/v1/completions", json={"prompt": "hello", "max_tokens": 700}))

    async def busy():
        return (await scrape(client, kind)).running == 1

    await until(busy)
    snapshot = await scrape(client, kind)

    assert (idle.models[0].id, idle.running, idle.kv_used_tokens) == ("magnus-sim-8b", 0, 0)
    assert snapshot.kv_capacity_tokens == pytest.approx(1600, abs=16)
    assert 20 <= snapshot.kv_used_tokens <= 720
    assert (snapshot.waiting, snapshot.preemptions or 0) == (0, 0)
    request.cancel()
