"""Simulated engines on real sockets, much faster than real time."""

import asyncio
from contextlib import AsyncExitStack

import httpx2
import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening

DEADLINE_S = 20.0
POLL_S = 0.005


@pytest.fixture
async def serve():
    """Return a function that starts an engine and returns a client for it."""
    async with AsyncExitStack() as stack:

        async def start(**fields):
            url = await stack.enter_async_context(listening(EngineConfig(**{"speed": 1000.0, **fields})))
            return await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S))

        yield start


@pytest.fixture
def gauge():
    """Return a function that reads one sample from the metrics page."""

    async def read(client, name):
        page = (await client.get("/metrics")).text
        line = next(line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
        return float(line.rsplit(" ", 1)[1])

    return read


@pytest.fixture
def until():
    """Return a function that waits until an asynchronous condition is true, or fails at the deadline."""

    async def poll(condition):
        for _ in range(int(DEADLINE_S / POLL_S)):
            if await condition():
                return
            await asyncio.sleep(POLL_S)
        raise TimeoutError

    return poll
