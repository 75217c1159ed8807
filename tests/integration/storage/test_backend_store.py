import pytest

from gateway.storage.backend_store import BackendStore, StoredBackend

FIELDS = {"kind": "vllm", "url": "http://gpu", "models": ["a"], "kv_tokens": 100}


@pytest.fixture
def store(engine) -> BackendStore:
    return BackendStore(engine)


async def test_backends_are_listed_in_the_order_of_their_creation(store):
    kept = [StoredBackend("b", FIELDS), StoredBackend("a", {}, draining=True)]
    for backend in kept:
        await store.save(backend)
    assert await store.list() == kept


async def test_saving_a_backend_again_changes_it_but_not_its_place(store):
    await store.save(StoredBackend("b", FIELDS))
    await store.save(StoredBackend("a", FIELDS))
    await store.save(StoredBackend("b", {"kind": "tgi"}, draining=True))
    assert await store.list() == [StoredBackend("b", {"kind": "tgi"}, draining=True), StoredBackend("a", FIELDS)]


async def test_a_removed_backend_is_not_listed(store):
    await store.save(StoredBackend("a", FIELDS))
    await store.remove("a")
    await store.remove("never there")
    assert await store.list() == []
