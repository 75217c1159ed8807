"""A static engine behind the gateway: waiting requests are sent as one call, and each gets its own answer."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from backends.simulator.text import text_of
from tests.e2e.conftest import StartGateway
from tests.e2e.engines import MODEL, Engine
from tests.e2e.gateway import DEADLINE_S, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

FIRST_TOKENS = 1500
"""Tokens of the answer that keeps the engine busy, about a second, until all others wait."""

LENGTHS = (40, 44, 48, 52, 56, 60)
PROMPT_TOKENS = 20

StartStatic = Callable[..., Awaitable[Engine]]


@pytest_asyncio.fixture(loop_scope="session")
async def start_static(tmp_path: Path) -> AsyncIterator[StartStatic]:
    """Yield a function that starts static engines. They answer the prompt "p<tokens>" with this many tokens."""
    async with AsyncExitStack() as stack:

        async def start(kv_tokens: int) -> Engine:
            workload = tmp_path / "workload.jsonl"
            rows = [
                {"prompt": prompt_of(tokens), "input_tokens": PROMPT_TOKENS, "output_tokens": tokens}
                for tokens in (FIRST_TOKENS, *LENGTHS)
            ]
            workload.write_text("".join(json.dumps(row) + "\n" for row in rows))
            config = EngineConfig(
                kind="static", model=MODEL, kv_tokens=kv_tokens, max_model_len=1600, speed=20.0, workload=workload
            )
            return Engine(await stack.enter_async_context(listening(config)))

        yield start


def prompt_of(tokens: int) -> str:
    return f"p{tokens}"


def static(engine: Engine) -> dict[str, Any]:
    return engine.backend(kind="static")


async def calls(engine: Engine) -> int:
    """Return the number of HTTP requests that the engine works on."""
    async with httpx2.AsyncClient(timeout=DEADLINE_S, trust_env=False) as client:
        return int((await client.get(f"{engine.url}/load")).json()["server_load"])


async def send(gateway: Gateway, app: str, tokens: int, **fields: Any) -> httpx2.Response:
    body = {"model": MODEL, "prompt": prompt_of(tokens), "max_tokens": 1550, "user": f"u{tokens}", **fields}
    return await gateway.http.post("/v1/completions", json=body, headers={"X-App-Id": app})


async def ask_behind_another(gateway: Gateway, engine: Engine, app: str, **fields: Any) -> list[httpx2.Response]:
    """Send prompts for all of `LENGTHS` while the engine is busy. Return the answers when all are there."""
    async with asyncio.TaskGroup() as group:
        first = group.create_task(send(gateway, "first", FIRST_TOKENS))
        await until(engine.works, "the first request runs")
        tasks = [group.create_task(send(gateway, app, tokens, **fields)) for tokens in LENGTHS]
        await until(gateway.shows("magnus_queue_waiting", len(LENGTHS)), "the others wait")
        await first
        await until(runs_all(engine), "the others run together")
        assert await calls(engine) == 1
    return [task.result() for task in tasks]


def runs_all(engine: Engine) -> Callable[[], Awaitable[bool]]:
    async def condition() -> bool:
        return await engine.sample("vllm:num_requests_running") == len(LENGTHS)

    return condition


async def test_waiting_requests_are_one_call_and_each_gets_its_own_answer(
    start_static: StartStatic, start_gateway: StartGateway, app: str
) -> None:
    engine = await start_static(kv_tokens=20_000)
    gateway = await start_gateway(static(engine))
    answers = [response.json() for response in await ask_behind_another(gateway, engine, app)]

    assert [answer["choices"][0]["text"] for answer in answers] == [text_of(tokens) for tokens in LENGTHS]
    assert [answer["choices"][0]["index"] for answer in answers] == [0] * len(LENGTHS)
    assert len({answer["id"] for answer in answers}) == len(LENGTHS)
    assert sum(answer["usage"]["prompt_tokens"] for answer in answers) == PROMPT_TOKENS * len(LENGTHS)
    counted = [answer["usage"]["completion_tokens"] for answer in answers]
    assert sum(counted) == sum(LENGTHS)
    assert counted == pytest.approx(LENGTHS, rel=0.15)

    await gateway.wait_for_totals(app, ok=len(LENGTHS))
    remembered = (await gateway.stats(app=app))["apps"][0]
    assert (remembered["requests"], remembered["output_tokens"]["total"]) == (len(LENGTHS), sum(LENGTHS))


async def test_streaming_requests_of_a_batch_get_streams(
    start_static: StartStatic, start_gateway: StartGateway, app: str
) -> None:
    engine = await start_static(kv_tokens=20_000)
    gateway = await start_gateway(static(engine))
    answers = await ask_behind_another(gateway, engine, app, stream=True)

    for answer, tokens in zip(answers, LENGTHS, strict=True):
        assert answer.headers["content-type"].startswith("text/event-stream")
        event, done, rest = answer.text.split("\n\n")
        assert json.loads(event.removeprefix("data: "))["choices"][0]["text"] == text_of(tokens)
        assert (done, rest) == ("data: [DONE]", "")
    totals = await gateway.wait_for_totals(app, ok=len(LENGTHS))
    assert totals["output_tokens"] == sum(LENGTHS)


async def test_requests_with_different_parameters_do_not_share_a_call(
    start_static: StartStatic, start_gateway: StartGateway, app: str
) -> None:
    engine = await start_static(kv_tokens=20_000)
    gateway = await start_gateway(static(engine))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(send(gateway, app, tokens, temperature=tokens / 100)) for tokens in LENGTHS]
    texts = [task.result().json()["choices"][0]["text"] for task in tasks]
    assert texts == [text_of(tokens) for tokens in LENGTHS]
