"""`magnus backend vllm` beside a running gateway: the engine is registered, serves, and is removed."""

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.storage.database import create_database_engine
from gateway.storage.keys import KeyStore
from tests.backend_command import DEADLINE_S, engines_of, free_port, installed_vllm, running
from tests.e2e.conftest import StartGateway
from tests.e2e.gateway import ADMIN_KEY, Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

NAME, MODEL = "gpu-9", "tiny"
LONG = 200


@pytest.fixture
def vllm_folder(tmp_path: Path) -> Iterator[Path]:
    with installed_vllm(tmp_path) as folder:
        yield folder


@pytest_asyncio.fixture(loop_scope="session")
async def gateway(start_gateway: StartGateway) -> Gateway:
    """A gateway without backends that requires keys."""
    return await start_gateway(auth={"mode": "keys"})


@pytest_asyncio.fixture(loop_scope="session")
async def key(database_url: str, app: str) -> AsyncIterator[str]:
    engine = create_database_engine(database_url, pool_size=1)
    key, _ = await KeyStore(engine).create(app)
    yield key
    await engine.dispose()


@asynccontextmanager
async def registered(gateway: Gateway, folder: Path, *options: object) -> AsyncIterator[subprocess.Popen[str]]:
    """Run the command until the block ends. It has printed the engine's address, so the gateway knows it."""
    known = ("--gateway", gateway.url, "--admin-key", ADMIN_KEY, "--port", free_port(), "--name", NAME)
    with ExitStack() as stack:
        # In a thread: the command waits for answers of the gateway, which runs in this one.
        process, _ = await asyncio.to_thread(stack.enter_context, running(folder, *known, *options))
        try:
            yield process
        finally:
            await asyncio.to_thread(stack.close)


async def backends(gateway: Gateway) -> list[dict[str, Any]]:
    response = await gateway.http.get("/admin/backends", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    assert response.status_code == 200, response.text
    return response.json()["backends"]


async def serves(gateway: Gateway) -> None:
    async def is_healthy() -> bool:
        return (await gateway.http.get("/health/ready")).json()["backends"] == {NAME: "healthy"}

    await until(is_healthy, "the gateway reports the engine as healthy")


async def code_of(process: subprocess.Popen[str]) -> int:
    return await asyncio.to_thread(process.wait, DEADLINE_S)


def completion_fields(tokens: int, **fields: Any) -> dict[str, Any]:
    """Return a request whose answer has exactly this many tokens."""
    return {"model": MODEL, "prompt": "x", "max_tokens": tokens, "extra_body": {"ignore_eos": True}, **fields}


async def test_engine_serves_under_its_name_and_gets_priorities(
    gateway: Gateway, vllm_folder: Path, key: str, app: str
) -> None:
    async with registered(gateway, vllm_folder), gateway.sdk(api_key=key) as sdk:
        (entry,) = await backends(gateway)
        await serves(gateway)
        answer = await sdk.completions.with_raw_response.create(**completion_fields(3))

    assert (entry["name"], entry["kind"], entry["priority"], entry["source"]) == (NAME, "vllm", True, "admin")
    assert answer.headers["x-magnus-backend"] == NAME
    assert answer.parse().usage.completion_tokens == 3
    (sent,) = map(json.loads, (vllm_folder / "requests.jsonl").read_text().splitlines())
    assert type(sent["priority"]) is int
    await gateway.wait_for_totals(app, requests=1, ok=1, output_tokens=3)


async def test_engine_is_removed_after_its_running_requests_end(
    gateway: Gateway, vllm_folder: Path, key: str, app: str
) -> None:
    async with registered(gateway, vllm_folder) as process, gateway.sdk(api_key=key) as sdk:
        await serves(gateway)
        (engine,) = engines_of(vllm_folder)
        stream = await sdk.completions.create(
            **completion_fields(LONG, stream=True, stream_options={"include_usage": True})
        )
        first = await anext(stream)
        process.send_signal(signal.SIGTERM)
        rest = [part async for part in stream]
        code = await code_of(process)

    assert first.choices[0].finish_reason is None
    assert rest[-1].usage.completion_tokens == LONG
    assert [choice.finish_reason for part in rest for choice in part.choices][-1] == "length"
    assert code == 0
    assert not engine.is_running()
    assert (vllm_folder / "ended").exists()
    await gateway.wait_for_totals(app, requests=1, ok=1, output_tokens=LONG)

    async def is_gone() -> bool:
        return await backends(gateway) == []

    await until(is_gone, "the backend is removed")
    refused = await ask_for_one(gateway, key)
    assert refused.status_code == 503, refused.text


async def ask_for_one(gateway: Gateway, key: str) -> httpx2.Response:
    body, headers = {"model": MODEL, "prompt": "x", "max_tokens": 1}, {"authorization": f"Bearer {key}"}
    return await gateway.http.post("/v1/completions", json=body, headers=headers)


async def test_stopping_engine_gets_no_new_requests(gateway: Gateway, vllm_folder: Path, key: str, app: str) -> None:
    async with registered(gateway, vllm_folder) as process, gateway.sdk(api_key=key) as sdk:
        await serves(gateway)
        running = asyncio.create_task(sdk.completions.create(**completion_fields(LONG)))
        await until(gateway.shows("magnus_requests_running", 1), "the request runs")
        process.send_signal(signal.SIGTERM)

        async def leaves() -> bool:
            return (await ask_for_one(gateway, key)).status_code == 503

        await until(leaves, "the gateway has no engine for new requests")
        assert not running.done()
        assert (await running).usage.completion_tokens == LONG
        assert await code_of(process) == 0


async def test_second_signal_ends_command_and_engine_at_once_and_removes_the_entry(
    gateway: Gateway, vllm_folder: Path, key: str
) -> None:
    async with registered(gateway, vllm_folder, "--drain-s", 600) as process, gateway.sdk(api_key=key) as sdk:
        await serves(gateway)
        (engine,) = engines_of(vllm_folder)
        stream = await sdk.completions.create(**completion_fields(8000, stream=True))
        await anext(stream)
        process.send_signal(signal.SIGTERM)

        async def is_taken_out() -> bool:
            return all(entry["draining"] for entry in await backends(gateway))

        await until(is_taken_out, "the command has removed the engine")
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert await code_of(process) == 0
        assert not engine.is_running()

    async def is_gone() -> bool:
        return await backends(gateway) == []

    await until(is_gone, "the backend is removed")
