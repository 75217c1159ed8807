"""A real vLLM that is stopped and killed, as the gateway's clients notice it, and that restarts under load."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from bench.vllm_environment.engine import ARGUMENTS, MODEL, OFFLINE, ONE_THREAD, Engine
from bench.vllm_environment.install import environment
from tests.e2e.engines import Engine as Probe
from tests.e2e.gateway import Gateway, serving, settings_of, until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

LONG = 1500
"""Tokens of an answer that still runs when its engine ends, after some seconds."""

IDLE_S = 5
CLIENTS = 4
UP_WITHIN_S = 240
START_S = 0.5


def chat(tokens: int, **fields: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "hello"}
    return {"model": MODEL, "messages": [message], "max_tokens": tokens, "ignore_eos": True, **fields}


async def stream(gateway: Gateway) -> list[str]:
    """Return the data of all events of a long answer."""
    response = await gateway.http.post("/v1/chat/completions", json=chat(LONG, stream=True), timeout=60)
    return [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]


def is_broken(events: list[str]) -> bool:
    """Return whether a stream ends as a failed one must: in an error, and not in [DONE]."""
    return "[DONE]" not in events and "error" in json.loads(events[-1])


def is_whole(events: list[str]) -> bool:
    """Return whether a stream is complete. vLLM marks a stream that it cuts at its shutdown with `abort`."""
    return events[-1] == "[DONE]" and not any('"abort"' in event for event in events)


async def retry_until_answered(gateway: Gateway) -> list[httpx2.Response]:
    """Retry until there is an answer, and return all responses."""
    responses = []
    while True:
        responses.append(await gateway.http.post("/v1/chat/completions", json=chat(5), timeout=60))
        if responses[-1].status_code == 200:
            return responses
        await asyncio.sleep(0.5)


def descendants(pid: int, name: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if name in " ".join(process.cmdline()) or name in process.name():
                found.append(process)
    return found


@asynccontextmanager
async def started_by_command(folder: Path, port: int) -> AsyncIterator[Process]:
    """Start a vLLM with `magnus backend vllm`, and wait until the command reports it healthy."""
    home = environment()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAGNUS_", "VLLM_"))}
    own = {"VLLM_CACHE_ROOT": str(home / "cache"), "TMPDIR": str(folder), "PATH": f"{home}/bin:{os.environ['PATH']}"}
    command = ("-m", "gateway.cli", "backend", "vllm", "--model", str(home / "tiny"), "--port", str(port))
    with (folder / "command.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            "--",
            *ARGUMENTS,
            env=inherited | OFFLINE | ONE_THREAD | own,
            stdout=PIPE,
            stderr=log,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(UP_WITHIN_S):
            while (line := await process.stdout.readline()) and not line.startswith(b"http://"):
                continue
        assert line.decode().strip() == f"http://127.0.0.1:{port}", (folder / "command.log").read_text()[-2000:]
        yield process
    finally:
        for _ in range(2):  # the first SIGTERM drains, the second ends it at once
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        await process.wait()


async def test_engine_that_dies_and_restarts_under_load(vllm: Engine, tmp_path: Path, database_url: str) -> None:
    """Kills the engine that all tests share, which saves the start of another one, so it must run last."""
    engine = vllm
    async with AsyncExitStack() as stack:
        backend = {"name": "gpu-0", "kind": "vllm", "url": engine.url, "priority": True}
        settings = settings_of(database_url, tmp_path, [backend], upstream={"idle_timeout_s": IDLE_S})
        gateway = await stack.enter_async_context(serving(settings))

        # SIGKILL of vLLM's engine process. By itself vLLM would end the streams in [DONE].
        streams = [asyncio.create_task(stream(gateway)) for _ in range(CLIENTS)]
        await until(Probe(engine.url).works, "the engine works")
        (core,) = descendants(engine.process.pid, "EngineCore")
        core.send_signal(signal.SIGKILL)
        answers = await asyncio.gather(*streams)
        assert [is_broken(answer) for answer in answers] == [True] * CLIENTS
        assert any(len(answer) > 2 for answer in answers)
        await asyncio.to_thread(engine.kill)
        await until(unhealthy(gateway), "the gateway reports the engine as unhealthy")
        stats = await gateway.stats()
        assert (stats["backends"][0]["kv_reserved_tokens"], stats["queue"]["waiting"]) == (0, 0)

        # vLLM restarts on its port while its clients keep sending.
        pending = [asyncio.create_task(retry_until_answered(gateway)) for _ in range(CLIENTS)]
        process = await stack.enter_async_context(started_by_command(tmp_path, engine.port))
        for responses in await asyncio.gather(*pending):
            assert responses[-1].json()["usage"]["completion_tokens"] == 5
            assert {response.status_code for response in responses[:-1]} <= {502, 503, 504}
            assert all(response.json()["error"]["message"] for response in responses[:-1])

        # SIGTERM within a stream: the client must get an end, whatever vLLM does.
        last = asyncio.create_task(stream(gateway))
        await asyncio.sleep(START_S)  # time for a first token: vLLM's metrics are updated too late to wait for
        assert not last.done()
        (server,) = [child for child in psutil.Process(process.pid).children() if child.is_running()]
        server.send_signal(signal.SIGTERM)
        async with asyncio.timeout(IDLE_S + 25):
            events = await last
            assert is_broken(events) or is_whole(events)
            assert await process.wait() != 0


def unhealthy(gateway: Gateway) -> Any:
    async def condition() -> bool:
        return (await gateway.http.get("/health/ready")).status_code == 503

    return condition
