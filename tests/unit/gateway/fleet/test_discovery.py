import asyncio

import pytest

from backends.base import BackendSpec, ModelCard, Snapshot
from gateway.fleet.discovery import INTERVAL_S, Discovery
from gateway.fleet.pool import BackendPool
from tests.unit.gateway.fake_engines import FakeBackend

SERVING = Snapshot((ModelCard("llama"),))
SPEC = BackendSpec(name="gpu", kind="vllm", url="http://engines:8000/base", max_concurrency=4)


class Found:
    """A pool whose entries are found behind names."""

    def __init__(self, *specs, running=()):
        self.names = {}
        self.failed = []
        self.asked = []
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
        self.asked.append(host)
        addresses = self.names[host]
        if isinstance(addresses, Exception):
            raise addresses
        return addresses

    @property
    def urls(self):
        return {name: entry.backend.spec.url for name, entry in self.pool.entries.items()}

    async def look(self, spec=SPEC):
        await self.discovery.refresh(spec)
        return sorted(self.pool.entries)


async def test_every_address_is_a_backend_of_its_own():
    found = Found(SPEC)
    found.names["engines"] = ["10.0.0.3", "fd00::4"]
    await found.look()
    assert found.urls == {
        "gpu@10.0.0.3": "http://10.0.0.3:8000/base",
        "gpu@fd00::4": "http://[fd00::4]:8000/base",
    }
    assert found.asked == ["engines"]
    assert {entry.backend.spec.max_concurrency for entry in found.pool.entries.values()} == {4}


async def test_addresses_that_vanish_are_drained_and_new_ones_taken_in():
    found = Found(SPEC, running=["gpu@10.0.0.1"])
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.look()
    found.names["engines"] = ["10.0.0.3"]
    assert await found.look() == ["gpu@10.0.0.1", "gpu@10.0.0.3"]
    assert found.pool.entries["gpu@10.0.0.1"].is_draining
    found.names["engines"] = ["10.0.0.1", "10.0.0.3"]
    await found.look()
    assert not found.pool.entries["gpu@10.0.0.1"].is_draining


async def test_addresses_that_cannot_be_had_leave_all_as_it_was():
    found = Found(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    await found.look()
    found.names["engines"] = OSError("no answer")
    assert await found.look() == ["gpu@10.0.0.1"]
    assert found.failed == ["gpu"]


async def test_names_are_asked_for_again_and_again():
    found = Found(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    task = asyncio.create_task(found.discovery.run())
    await asyncio.sleep(10.5 * INTERVAL_S)
    assert 9 <= len(found.asked) <= 13
    other = BackendSpec(name="other", kind="vllm", url="http://others")
    found.names["others"] = ["10.0.0.9"]
    found.discovery.watch(other)
    await asyncio.sleep(0.1)
    assert found.urls["other@10.0.0.9"] == "http://10.0.0.9"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("force", [True, False])
async def test_a_name_that_is_forgotten_takes_its_backends_along(force):
    found = Found(SPEC, running=["gpu@10.0.0.1"])
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.look()
    found.discovery.forget("gpu", force=force)
    assert list(found.pool.entries) == ([] if force else ["gpu@10.0.0.1"])
    assert await found.look() == list(found.pool.entries)


async def test_a_backend_that_was_changed_is_changed_at_every_address():
    found = Found(SPEC)
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.look()
    await found.discovery.change(BackendSpec(name="gpu", kind="vllm", url=SPEC.url, max_concurrency=9))
    assert {entry.backend.spec.max_concurrency for entry in found.pool.entries.values()} == {9}
    assert len(found.pool.entries) == 2


async def test_addresses_that_come_to_a_draining_backend_drain_too():
    found = Found(SPEC)
    found.names["engines"] = ["10.0.0.1"]
    await found.look()
    found.discovery.drain("gpu", True)
    found.names["engines"] = ["10.0.0.1", "10.0.0.2"]
    await found.look()
    assert [entry.is_draining for entry in found.pool.entries.values()] == [True, True]
    found.discovery.drain("gpu", False)
    assert [entry.is_draining for entry in found.pool.entries.values()] == [False, False]
