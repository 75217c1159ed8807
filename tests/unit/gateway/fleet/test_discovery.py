import asyncio

import pytest

from backends.base import BackendSpec, ModelCard, Snapshot
from gateway.fleet.discovery import INTERVAL_S, Discovery
from gateway.fleet.pool import BackendPool
from tests.unit.gateway.fake_engines import FakeBackend

SERVING = Snapshot((ModelCard("llama"),))
SPEC = BackendSpec(name="gpu", kind="vllm", url="http://engines:8000/base", max_concurrency=4)


class DiscoveredPool:
    """A pool whose entries come from lookups of host names."""

    def __init__(self, *specs, running=()):
        self.names = {}
        self.failed = []
        self.lookups = []
        self.running = set(running)
        self.pool = BackendPool(
            [],
            post=lambda _: None,
            monotonic=lambda: asyncio.get_running_loop().time(),
            interval_s=1.0,
            on_scrape_failure=lambda *_: None,
            in_flight=lambda name: int(name in self.running),
        )
        self.discovery = Discovery(self.pool, self.connect, self.resolve, self.failed.append)
        for spec in specs:
            self.discovery.watch(spec)

    def connect(self, spec):
        backend = FakeBackend(spec.name, SERVING)
        backend.spec = spec
        return backend

    async def resolve(self, host):
        self.lookups.append(host)
        addresses = self.names[host]
        if isinstance(addresses, Exception):
            raise addresses
        return addresses

    @property
    def urls(self):
        return {name: entry.backend.spec.url for name, entry in self.pool.entries.items()}

    async def refresh(self, spec=SPEC):
        await self.discovery.refresh(spec)
        return sorted(self.pool.entries)


async def test_every_address_becomes_a_backend():
    found = DiscoveredPool(SPEC)
    found.names["engines"] = ["10.0.0.3", "fd00::4"]
    await found.refresh()
    assert found.urls == {
        "gpu@10.0.0.3": "http://10.0.0.3:8000/base",
        "gpu@fd00::4": "http://[fd00::4]:8000/base",
    }
    assert found.lookups == ["engines"]
    assert {entry.backend.spec.max_concurrency for entry in found.pool.entries.values()} == {4}


async def test_missing_addresses_are_drained_and_new_ones_added():
    found = DiscoveredPool(SPEC, running=["gpu@10.0.0.1"])
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.refresh()
    found.names["engines"] = ["10.0.0.3"]
    assert await found.refresh() == ["gpu@10.0.0.1", "gpu@10.0.0.3"]
    assert found.pool.entries["gpu@10.0.0.1"].is_draining
    found.names["engines"] = ["10.0.0.1", "10.0.0.3"]
    await found.refresh()
    assert not found.pool.entries["gpu@10.0.0.1"].is_draining


async def test_failed_lookup_changes_nothing():
    found = DiscoveredPool(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    await found.refresh()
    found.names["engines"] = OSError("no answer")
    assert await found.refresh() == ["gpu@10.0.0.1"]
    assert found.failed == ["gpu"]


async def test_host_names_are_looked_up_periodically():
    found = DiscoveredPool(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    task = asyncio.create_task(found.discovery.run())
    await asyncio.sleep(10.5 * INTERVAL_S)
    assert 9 <= len(found.lookups) <= 13
    other = BackendSpec(name="other", kind="vllm", url="http://others")
    found.names["others"] = ["10.0.0.9"]
    found.discovery.watch(other)
    await asyncio.sleep(0.1)
    assert found.urls["other@10.0.0.9"] == "http://10.0.0.9"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("force", [True, False])
async def test_forgetting_a_name_removes_its_backends(force):
    found = DiscoveredPool(SPEC, running=["gpu@10.0.0.1"])
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.refresh()
    found.discovery.forget("gpu", force=force)
    assert list(found.pool.entries) == ([] if force else ["gpu@10.0.0.1"])
    assert await found.refresh() == list(found.pool.entries)


async def test_changed_backend_changes_at_every_address():
    found = DiscoveredPool(SPEC)
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.refresh()
    await found.discovery.change(BackendSpec(name="gpu", kind="vllm", url=SPEC.url, max_concurrency=9))
    assert {entry.backend.spec.max_concurrency for entry in found.pool.entries.values()} == {9}
    assert len(found.pool.entries) == 2


async def test_new_addresses_of_a_draining_backend_drain_too():
    found = DiscoveredPool(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    await found.refresh()
    found.discovery.drain("gpu", True)
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.refresh()
    assert [entry.is_draining for entry in found.pool.entries.values()] == [True, True]
    found.discovery.drain("gpu", False)
    assert [entry.is_draining for entry in found.pool.entries.values()] == [False, False]
