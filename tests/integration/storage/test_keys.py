import re

import pytest

from gateway.storage.keys import KeyStore, hash_key


@pytest.fixture
def store(engine) -> KeyStore:
    return KeyStore(engine)


async def test_lookup_returns_the_application_of_a_key(store):
    key, kept = await store.create("translate", label="staging")
    assert re.fullmatch(r"mg-[A-Za-z0-9_-]{32}", key)
    assert key.startswith(kept.prefix)
    assert await store.lookup(hash_key(key)) == "translate"
    assert await store.lookup(hash_key(key + "x")) is None


async def test_lookup_of_a_revoked_key_returns_none(store):
    key, kept = await store.create("translate")
    other, _ = await store.create("translate")
    assert await store.revoke(kept.id)
    assert not await store.revoke(kept.id)
    assert await store.lookup(hash_key(key)) is None
    assert await store.lookup(hash_key(other)) == "translate"


async def test_list_includes_revoked_keys(store):
    _, first = await store.create("translate", label="one")
    _, second = await store.create("summary")
    await store.revoke(second.id)
    assert (await store.list())[0] == first
    [listed] = await store.list("summary")
    assert listed.id == second.id
    assert listed.revoked_at is not None


async def test_the_key_itself_is_not_stored(store, rows):
    key, _ = await store.create("translate")
    [row] = await rows("SELECT * FROM api_keys")
    assert key not in str(row)


async def test_unknown_id_is_not_revoked(store):
    assert not await store.revoke(999)
