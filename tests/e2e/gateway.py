"""A gateway on a socket, with the views of its clients and its operator."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import msgspec
from openai import AsyncOpenAI

from gateway.config import Settings
from gateway.server.serve import running
from tests.databases import fresh_database as fresh_database

ADMIN_KEY = "admin-key-of-these-tests"
DEADLINE_S = 30.0
POLL_S = 0.01

Condition = Callable[[], Awaitable[bool]]


async def until(condition: Condition, what: str) -> None:
    """Poll until the condition holds.

    Raises:
        AssertionError: The condition is still false at the deadline.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + DEADLINE_S
    while not await condition():
        assert loop.time() < deadline_s, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway, and a plain HTTP client of it."""

    url: str
    http: httpx2.AsyncClient

    def sdk(self, app: str | None = None, *, api_key: str = "none") -> AsyncOpenAI:
        """Return OpenAI's client for one application. Close it, or use it as a context manager."""
        headers = {"X-App-Id": app} if app else {}
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=DEADLINE_S, default_headers=headers
        )

    async def stats(self, **narrowed: str) -> dict[str, Any]:
        """Read `/admin/stats`."""
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        response = await self.http.get("/admin/stats", params=narrowed, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    async def totals(self, app: str) -> dict[str, int]:
        """Read the history of an application's requests, by status."""
        return (await self.stats(app=app))["totals"]

    async def wait_for_totals(self, app: str, **expected: int) -> dict[str, int]:
        """Wait until the application's totals have these counts. A record follows the answer, with a delay."""

        async def agrees() -> bool:
            return (await self.totals(app)).items() >= expected.items()

        await until(agrees, f"history of {app} has {expected}")
        return await self.totals(app)

    def with_client(self, client: httpx2.AsyncClient) -> "Gateway":
        """Return the same gateway with a client that may outlive it."""
        client.base_url = self.url
        return Gateway(self.url, client)

    def shows(self, name: str, value: float, **labels: str) -> Condition:
        """Return the condition that a metric has this value."""

        async def condition() -> bool:
            return await self.metric(name, **labels) == value

        return condition

    async def metric(self, name: str, **labels: str) -> float:
        """Read the sum of a metric's samples that have these labels."""
        page = (await self.http.get("/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum_of_samples(page, name, *wanted)


def sum_of_samples(page: str, name: str, *parts: str) -> float:
    """Add up the samples of a metric family, in Prometheus's text format, whose line contains all the parts."""
    lines = [line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(part in line for part in parts))


def settings_of(database_url: str, data_dir: Path, backends: list[dict[str, Any]], **sections: Any) -> Settings:
    """Return settings of a gateway on a free port, as a `magnus.toml` would give them."""
    tree = {
        "server": {"port": 0, "shutdown_s": 1} | sections.pop("server", {}),
        "database": {"url": database_url, "data_dir": str(data_dir)},
        "prediction": {"embedder": "off"},  # the embedder is not needed here, and its start takes CPU time
        "auth": {"admin_key": ADMIN_KEY} | sections.pop("auth", {}),
        "upstream": {"scrape_interval_s": 0.1} | sections.pop("upstream", {}),
        "backends": backends,
        **sections,
    }
    return msgspec.convert(tree, Settings)


@asynccontextmanager
async def serving(settings: Settings, *, ready: bool = True) -> AsyncIterator[Gateway]:
    """Run a gateway until the block ends. By default wait until it has scraped all its backends."""
    async with (
        running(settings) as gateway,
        httpx2.AsyncClient(base_url=gateway.url, timeout=DEADLINE_S, trust_env=False) as http,
    ):

        async def has_scraped_all() -> bool:
            return set((await http.get("/health/ready")).json()["backends"].values()) <= {"healthy"}

        if ready:
            await until(has_scraped_all, "all backends are healthy")
        yield Gateway(gateway.url, http)
