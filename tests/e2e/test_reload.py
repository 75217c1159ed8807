"""`magnus serve` reloads its settings on SIGHUP while requests run."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.command import Home, Running
from tests.e2e.conftest import StartEngine
from tests.e2e.engines import MODEL, Engine, HeldBack, Received, answer
from tests.e2e.gateway import ADMIN_KEY, DEADLINE_S, sum_of_samples, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

CLIENTS = 8
RELOADS = 12


@dataclass
class Served:
    """A gateway in its own process, its settings file, and a client."""

    path: Path
    running: Running
    http: httpx2.AsyncClient

    async def reload(self, text: str, result: str) -> None:
        """Write the file, send SIGHUP, and wait until the gateway has finished the reload."""
        done = await self.metric("magnus_reloads_total", f'result="{result}"')
        self.path.write_text(text, encoding="utf-8")
        self.running.process.send_signal(signal.SIGHUP)

        async def dealt_with() -> bool:
            return await self.metric("magnus_reloads_total", f'result="{result}"') == done + 1

        await until(dealt_with, f"a reload that is {result}")

    async def metric(self, name: str, *labels: str) -> float:
        return sum_of_samples((await self.http.get("/metrics")).text, name, *labels)

    async def stats(self) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        stats: dict[str, Any] = (await self.http.get("/admin/stats", headers=headers)).json()
        return stats

    async def backends(self) -> dict[str, Any]:
        return {backend["name"]: backend for backend in (await self.stats())["backends"]}

    async def send(self, model: str = MODEL) -> httpx2.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
        return await self.http.post("/v1/chat/completions", json=body)


def settings(*backends: tuple[str, str], more: str = "") -> str:
    entries = [f'[[backends]]\nname = "{name}"\nkind = "vllm"\nurl = "{url}"\n' for name, url in backends]
    return f'[auth]\nadmin_key = "{ADMIN_KEY}"\n[upstream]\nscrape_interval_s = 0.1\n{more}\n' + "".join(entries)


@asynccontextmanager
async def served(folder: Path, database_url: str, text: str) -> AsyncIterator[Served]:
    """Run `magnus serve` on these settings until the block ends."""
    path = folder / "magnus.toml"
    path.write_text(text, encoding="utf-8")
    start = Home(folder).start(
        *("serve", "--config", path),
        announced_by="Magnus answers at",
        MAGNUS_DATABASE_URL=database_url,
        MAGNUS_SERVER_PORT="0",
    )
    with start as running:
        url = running.said().partition("Magnus answers at ")[2].split("/v1")[0]
        async with httpx2.AsyncClient(base_url=url, timeout=DEADLINE_S, trust_env=False) as http:
            gateway = Served(path, running, http)

            async def is_ready() -> bool:
                return (await http.get("/health/ready")).status_code == 200

            await until(is_ready, "the gateway is ready")
            yield gateway


@dataclass
class Load:
    """Clients that send one request after the other without a pause."""

    gateway: Served
    answers: Counter[int] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)

    async def client(self) -> None:
        while True:
            response = await self.gateway.send()
            self.answers[response.status_code] += 1
            self.backends[response.headers.get("x-magnus-backend", "")] += 1

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        clients = [asyncio.create_task(self.client()) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            for client in clients:
                with suppress(asyncio.CancelledError):
                    await client


async def slowly(_: Received, writer: asyncio.StreamWriter) -> None:
    """Answer after a while, so that a reload finds running requests."""
    await asyncio.sleep(0.05)
    writer.write(answer())


async def test_no_request_is_lost_while_backends_are_added_changed_and_removed(
    start_engine: StartEngine, database_url: str, tmp_path: Path
) -> None:
    a, b = await start_engine(slowly), await start_engine(slowly)
    versions = [
        settings(("one", a.url)),
        settings(("one", a.url), ("two", b.url)),
        settings(("one", b.url)),  # a different engine of the same name
        settings(("one", b.url), more='[models.aliases]\nother = "tiny"'),
        settings(("three", a.url), ("one", b.url)),
        settings(("two", b.url)),
    ]
    async with served(tmp_path, database_url, versions[0]) as gateway:
        load = Load(gateway)
        async with load.on():
            for turn in range(RELOADS):
                await asyncio.sleep(0.15)
                await gateway.reload(versions[(turn + 1) % len(versions)], "applied")
            await asyncio.sleep(0.5)
        assert await gateway.metric("magnus_reloads_total", 'result="applied"') == RELOADS

    assert set(load.answers) == {200}
    assert load.answers[200] > 100
    assert set(load.backends) == {"one", "two", "three"}


async def test_invalid_file_is_rejected_as_a_whole(
    start_engine: StartEngine, simulated_engine: Engine, database_url: str, tmp_path: Path
) -> None:
    other = await start_engine(slowly)
    good = settings(("one", simulated_engine.url))
    bad = settings(("two", other.url), ("three", other.url)) + 'kv_tokens = "many"\n'
    async with served(tmp_path, database_url, good) as gateway:
        await gateway.reload(bad, "refused")
        await gateway.reload("[server\n", "refused")
        assert list(await gateway.backends()) == ["one"]
        assert (await gateway.send()).headers["x-magnus-backend"] == "one"
        assert "backends[1].kv_tokens" in gateway.running.said()
        await gateway.reload(settings(("two", other.url)), "applied")
        assert list(await gateway.backends()) == ["two"]


async def test_policy_changes_without_a_restart(simulated_engine: Engine, database_url: str, tmp_path: Path) -> None:
    backend = ("one", simulated_engine.url)
    async with served(tmp_path, database_url, settings(backend)) as gateway:
        assert (await gateway.stats())["queue"]["policy"] == "hrrn"
        await gateway.reload(settings(backend, more='[scheduling]\npolicy = "sjf"'), "applied")
        assert (await gateway.stats())["queue"]["policy"] == "sjf"
        assert (await gateway.send()).status_code == 200


async def test_settings_that_need_a_restart_are_named(
    simulated_engine: Engine, database_url: str, tmp_path: Path
) -> None:
    backend = ("one", simulated_engine.url)
    async with served(tmp_path, database_url, settings(backend)) as gateway:
        more = (
            '[server]\nmax_body_bytes = 1000\n[scheduling]\nqueue_timeout_s = 9\nmax_queue = 7\n[log]\nlevel = "debug"'
        )
        await gateway.reload(settings(backend, more=more), "applied")
        (line,) = [line for line in gateway.running.said().splitlines() if "need a restart" in line]
        assert "server.max_body_bytes" in line
        assert "scheduling.queue_timeout_s" in line
        assert "max_queue" not in line
        assert "log.level" not in line


async def test_removed_backend_finishes_its_running_requests(
    start_engine: StartEngine, simulated_engine: Engine, database_url: str, tmp_path: Path
) -> None:
    answers_held = HeldBack()
    held = await start_engine(answers_held)
    async with served(tmp_path, database_url, settings(("held", held.url))) as gateway:
        running = asyncio.create_task(gateway.send())
        await until(held.has_received(1), "the engine has a request")
        await gateway.reload(settings(("good", simulated_engine.url)), "applied")
        assert (await gateway.send()).headers["x-magnus-backend"] == "good"
        backends = await gateway.backends()
        assert (backends["held"]["draining"], backends["held"]["in_flight"]) == (True, 1)
        answers_held.go.set()
        assert (await running).headers["x-magnus-backend"] == "held"

        async def is_gone() -> bool:
            return list(await gateway.backends()) == ["good"]

        await until(is_gone, "the old backend is removed")
