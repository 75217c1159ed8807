"""Backends that fail, drain and recover, under load over real sockets."""

import asyncio
from itertools import count
from statistics import median
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import (
    DONE,
    MODEL,
    STREAM_END,
    STREAM_HEAD,
    Engine,
    FakeEngine,
    HeldBack,
    Received,
    answer,
    event,
    token,
    whole,
)
from tests.e2e.gateway import ADMIN_KEY, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

REQUESTS = 200

_numbers = count()


class Switch:
    """An engine that always answers scrapes, but requests only while it is healthy."""

    def __init__(self) -> None:
        self.well = False

    async def __call__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if self.well:
            writer.write(answer())
        else:
            writer.write(whole(b'{"error":{"message":"boom","type":"InternalServerError"}}', status="500 Boom"))


async def post(gateway: Gateway, *, stream: bool = False, prompt: str | None = None) -> httpx2.Response:
    """Send a request; without `prompt`, its prompt is another one each time."""
    text = f"x {next(_numbers)}" if prompt is None else prompt
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 3, "stream": stream}
    return await gateway.http.post("/v1/chat/completions", json=body)


async def backend_stats(gateway: Gateway, name: str) -> dict[str, Any]:
    (backend,) = [backend for backend in (await gateway.stats())["backends"] if backend["name"] == name]
    return backend


@pytest.mark.parametrize("prompt", [None, "the same"])
async def test_engine_that_fails_every_request_soon_gets_no_more(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine, prompt: str | None
) -> None:
    switch = Switch()
    sick = await start_engine(switch)
    gateway = await start_gateway(sick.backend("a-sick"), simulated_engine.backend("good"))
    for _ in range(REQUESTS):
        response = await post(gateway, prompt=prompt)
        assert (response.status_code, response.headers["x-magnus-backend"]) == (200, "good")

    backend = await backend_stats(gateway, "a-sick")
    assert (backend["healthy"], backend["circuit"] in {"open", "half_open"}) == (True, True)
    assert len(sick.received) <= 10
    assert await gateway.metric("magnus_backend_circuit", backend="a-sick") > 0
    assert await gateway.metric("magnus_backend_circuit_changes_total", backend="a-sick", to="open") >= 1

    switch.well = True

    async def is_chosen_again() -> bool:
        return (await post(gateway)).headers["x-magnus-backend"] == "a-sick"

    await until(is_chosen_again, "the recovered engine gets work")
    await until(gateway.shows("magnus_backend_circuit", 0, backend="a-sick"), "its circuit is closed")


async def test_engine_that_breaks_its_streams_soon_gets_no_more(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + token("one") + event({"error": {"message": "dead"}}) + DONE + STREAM_END)

    sick = await start_engine(respond)
    gateway = await start_gateway(sick.backend("a-sick"), simulated_engine.backend("good"))
    chosen = [(await post(gateway, stream=True)).headers["x-magnus-backend"] for _ in range(50)]

    assert chosen[:5] == ["a-sick"] * 5
    assert chosen.count("a-sick") <= 10
    assert await gateway.metric("magnus_backend_circuit", backend="a-sick") > 0


async def test_full_engine_stays_in_use(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(whole(b'{"error":{"message":"full"}}', status="503 Full"))

    full = await start_engine(respond)
    gateway = await start_gateway(full.backend("a-full"), simulated_engine.backend("good"))

    async def was_refused_often() -> bool:
        assert (await post(gateway)).status_code == 200
        return len(full.received) > 8

    await until(was_refused_often, "the full engine has rejected more requests than open a circuit")
    assert (await backend_stats(gateway, "a-full"))["circuit"] == "closed"
    assert await gateway.metric("magnus_backend_circuit_changes_total", backend="a-full") == 0


async def test_only_engine_serves_the_waiting_requests_after_it_recovers(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    switch = Switch()
    engine = await start_engine(switch)
    gateway = await start_gateway(engine.backend("only"))
    failed = [(await post(gateway)).status_code for _ in range(5)]
    assert failed == [500] * 5
    assert (await backend_stats(gateway, "only"))["circuit"] == "half_open"
    switch.well = True
    waited = await asyncio.gather(*[post(gateway) for _ in range(30)])

    assert [response.status_code for response in waited] == [200] * 30
    assert (await backend_stats(gateway, "only"))["circuit"] == "closed"


async def test_draining_engine_finishes_its_requests_and_gets_no_new_ones(
    start_engine: StartEngine, start_gateway: StartGateway, simulated_engine: Engine
) -> None:
    answers_held = HeldBack()
    held = await start_engine(answers_held)
    gateway = await start_gateway(held.backend("a-held"), simulated_engine.backend("good"))
    running = asyncio.create_task(post(gateway))
    await until(held.has_received(1), "the engine has a request")
    key = {"authorization": f"Bearer {ADMIN_KEY}"}
    drained = await gateway.http.patch("/admin/backends/a-held", json={"draining": True}, headers=key)
    others = [(await post(gateway)).headers["x-magnus-backend"] for _ in range(10)]
    backend = await backend_stats(gateway, "a-held")
    answers_held.go.set()

    assert (drained.status_code, drained.json()["draining"]) == (200, True)
    assert others == ["good"] * 10
    assert (backend["draining"], backend["in_flight"]) == (True, 1)
    assert (await running).json()["choices"][0]["message"]["content"] == "hello"
    await gateway.http.patch("/admin/backends/a-held", json={"draining": False}, headers=key)
    chosen = {(await post(gateway)).headers["x-magnus-backend"] for _ in range(5)}
    assert "a-held" in chosen


class SlowToTell(FakeEngine):
    """An engine whose metrics take 0.9 s, as vLLM's do under load."""

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if request.path == "/metrics":
            await asyncio.sleep(0.9)
        await super()._answer(request, writer)


async def test_slow_metrics_delay_no_request(start_gateway: StartGateway) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    engine = SlowToTell(respond)
    await engine.start()
    try:
        gateway = await start_gateway(engine.backend("slow-to-tell"))
        loop = asyncio.get_running_loop()
        took_s = []
        for _ in range(30):
            start_s = loop.time()
            assert (await post(gateway)).status_code == 200
            took_s.append(loop.time() - start_s)
        assert median(took_s) < 0.1
    finally:
        await engine.stop()
