"""Changing a backend while the gateway runs."""

import pytest

from backends.base import ModelCard, Snapshot
from gateway.fleet.discovery import Discovery
from gateway.fleet.manager import BackendManager
from gateway.storage.backend_store import BackendStore
from tests.unit.gateway.fake_engines import FakeBackend, pool_of

OLD = {"name": "gpu", "kind": "vllm", "url": "http://gpu:8000", "api_key": "sesame"}


class Store(BackendStore):
    """Keeps what was saved, in memory."""

    def __init__(self):
        self.saved = {}

    async def save(self, backend):
        self.saved[backend.name] = backend.fields


async def changed(**changes):
    def connect(spec):
        return FakeBackend(spec.name, Snapshot((ModelCard("llama"),)))

    pool, store = pool_of(), Store()
    manager = BackendManager([], pool=pool, discovery=Discovery(pool, connect), store=store, connect=connect)
    await manager.add(OLD)
    await manager.change("gpu", changes)
    return store.saved["gpu"].get("api_key")


@pytest.mark.parametrize("changes", [{"url": "http://other:8000"}, {"url": "http://gpu:8001", "max_concurrency": 2}])
async def test_another_url_removes_the_key(changes):
    assert await changed(**changes) is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"max_concurrency": 2}, "sesame"),
        ({"url": OLD["url"]}, "sesame"),
        ({"url": "http://other:8000", "api_key": "new"}, "new"),
    ],
)
async def test_key_stays_with_its_url_or_is_set_with_the_new_one(changes, key):
    assert await changed(**changes) == key
