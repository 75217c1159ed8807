"""What clients and balancers see of a gateway that stops."""

import asyncio
import os
import signal

import pytest

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import MODEL, STREAM_HEAD, HeldBack, Received, token
from tests.e2e.gateway import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_queue_is_served_while_the_gateway_stops(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    held = HeldBack()
    fake = await start_engine(held)
    backend = fake.backend("only", max_concurrency=1)
    gateway = await start_gateway(backend, server={"shutdown_s": 20, "drain_delay_s": 3})
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    posts = [asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body)) for _ in range(4)]
    await until(fake.has_received(1), "the engine has a request")
    os.kill(os.getpid(), signal.SIGTERM)

    async def is_stopping() -> bool:
        ready = await gateway.http.get("/health/ready")
        return (ready.status_code, ready.json()["status"]) == (503, "stopping")

    await until(is_stopping, "the gateway is not ready")
    late = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))
    held.go.set()

    assert [answer.status_code for answer in await asyncio.gather(*posts, late)] == [200] * 5


async def test_what_is_left_gets_an_error_in_its_form(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    async def respond(request: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + token("one"))
        await writer.drain()
        await asyncio.sleep(60)

    fake = await start_engine(respond)
    backend = fake.backend("only", max_concurrency=1)
    gateway = await start_gateway(backend, server={"shutdown_s": 1, "drain_delay_s": 0})
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    stream = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body | {"stream": True}))
    await until(fake.has_received(1), "the engine has a request")
    waiting = asyncio.create_task(gateway.http.post("/v1/chat/completions", json=body))

    async def waits() -> bool:
        return (await gateway.stats())["queue"]["waiting"] == 1

    await until(waits, "a request waits")
    os.kill(os.getpid(), signal.SIGTERM)
    left, cut = await asyncio.gather(waiting, stream)

    assert (left.status_code, left.json()["error"]["code"]) == (503, "shutting_down")
    assert int(left.headers["retry-after"]) >= 1
    assert cut.status_code == 200
    assert '"code":"shutting_down"' in cut.text.strip().splitlines()[-1]
