import pytest

from gateway.storage.backend_store import BackendStore, StoredBackend

FIELDS = {"kind": "vllm", "url": "http://gpu", "models": ["a"], "kv_tokens": 100}


@pytest.fixture
def store(engine) -> BackendStore:
    return BackendStore(engine)


async def test_backends_are_kept_in_the_order_of_their_coming(store):
    kept = [StoredBackend("b", FIELDS), StoredBackend("a", {}, draining=True)]
    for backend in kept:
        await store.save(backend)
    assert await store.list() == kept


async def test_a_backend_that_is_kept_again_is_changed_in_its_place(store):
    await store.save(StoredBackend("b", FIELDS))
    await store.save(StoredBackend("a", FIELDS))
    await store.save(StoredBackend("b", {"kind": "tgi"}, draining=True))
    assert await store.list() == [StoredBackend("b", {"kind": "tgi"}, draining=True), StoredBackend("a", FIELDS)]


async def test_a_backend_that_is_removed_is_forgotten(store):
    await store.save(StoredBackend("a", FIELDS))
    await store.remove("a")
    await store.remove("never there")
    assert await store.list() == []
