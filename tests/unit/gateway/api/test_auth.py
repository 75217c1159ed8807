import hmac

import pytest

from gateway.api import auth
from gateway.api.auth import (
    ANONYMOUS,
    UNKNOWN_KEY_TTL_S,
    VALID_KEY_TTL_S,
    KeyAuthenticator,
    OpenAccess,
    application_of_system_prompt,
    bearer,
    require_admin,
)
from gateway.errors import Forbidden, InvalidRequest, KeysUnavailable, Unauthorized
from gateway.storage.keys import hash_key


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": "Bearer k1"}, "k1"),
        ({"authorization": "bearer   k1 "}, "k1"),
        ({"x-api-key": "k1"}, "k1"),
        ({"authorization": "Bearer k1", "x-api-key": "k2"}, "k1"),
        ({"authorization": "Basic k1", "x-api-key": "k2"}, "k2"),
        ({"authorization": "Bearer "}, None),
        ({"authorization": "k1"}, "k1"),
        ({"authorization": " BEARER k1"}, "k1"),
        ({"authorization": "Bearer", "api-key": "k2"}, "k2"),
        ({"authorization": "Basic k1"}, None),
        ({"authorization": "Basic k1", "api-key": "k2"}, "k2"),
        ({"api-key": "k1"}, "k1"),
        ({}, None),
    ],
)
def test_a_key_is_read_from_openai_s_or_anthropic_s_header(headers, key):
    assert bearer(headers) == key


def test_equal_system_prompts_are_one_application():
    one, again, other = map(application_of_system_prompt, ("Be brief.", "Be brief.", "Be brief!"))
    assert one == again != other
    assert "brief" not in one


def test_without_a_system_prompt_the_application_is_anonymous():
    assert application_of_system_prompt(None) == ANONYMOUS


@pytest.mark.parametrize("app", ["mail", "My App 2", "a", "x" * 128])
async def test_open_access_takes_the_application_from_the_header(app):
    assert await OpenAccess().application({"x-app-id": app}) == app


async def test_open_access_requires_no_header():
    assert await OpenAccess().application({"authorization": "Bearer whatever"}) is None


@pytest.mark.parametrize("app", ["", " mail", "mail ", "x" * 129, "mäil", "a\tb", "a\x00"])
async def test_open_access_rejects_invalid_application_names(app):
    with pytest.raises(InvalidRequest) as refusal:
        await OpenAccess().application({"x-app-id": app})
    assert refusal.value.param == "X-App-Id"


class Keys:
    """A table of keys and a clock. It counts the queries."""

    def __init__(self, **apps):
        self.apps = {hash_key(key): app for key, app in apps.items()}
        self.queries = 0
        self.away = False
        self.now = 1000.0
        self.door = KeyAuthenticator(self.lookup, lambda: self.now)

    async def lookup(self, digest):
        self.queries += 1
        if self.away:
            raise KeysUnavailable("The database is away")
        return self.apps.get(digest)

    async def application(self, key):
        return await self.door.application({"authorization": f"Bearer {key}"})


async def test_key_determines_the_application():
    assert await Keys(k1="mail", k2="chat").application("k2") == "chat"


async def test_the_header_is_ignored_if_keys_name_the_application():
    keys = Keys(k1="mail")
    assert await keys.door.application({"x-api-key": "k1", "x-app-id": "chat"}) == "mail"


async def test_a_request_without_a_key_is_rejected():
    with pytest.raises(Unauthorized, match="No API key given") as refusal:
        await Keys().door.application({})
    assert refusal.value.headers == {"www-authenticate": "Bearer"}


async def test_an_error_does_not_contain_the_wrong_key():
    with pytest.raises(Unauthorized, match="not valid") as refusal:
        await Keys(k1="mail").application("sesame")
    assert "sesame" not in f"{refusal.value!s} {refusal.value!r}"


async def test_a_valid_key_is_looked_up_again_after_a_while():
    keys = Keys(k1="mail")
    for _ in range(5):
        assert await keys.application("k1") == "mail"
    assert keys.queries == 1
    keys.now += VALID_KEY_TTL_S
    assert await keys.application("k1") == "mail"
    assert keys.queries == 2


async def test_revoked_key_stops_working():
    keys = Keys(k1="mail")
    await keys.application("k1")
    keys.apps.clear()
    keys.now += VALID_KEY_TTL_S
    with pytest.raises(Unauthorized):
        await keys.application("k1")


async def test_a_wrong_key_is_cached_too():
    keys = Keys()
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await keys.application("k1")
    assert keys.queries == 1


async def test_a_new_key_works_after_a_short_time():
    keys = Keys()
    with pytest.raises(Unauthorized):
        await keys.application("k1")
    keys.apps[hash_key("k1")] = "mail"
    keys.now += UNKNOWN_KEY_TTL_S
    assert await keys.application("k1") == "mail"


async def test_the_cache_of_keys_is_bounded(monkeypatch):
    monkeypatch.setattr(auth, "MAX_KEYS", 10)
    keys = Keys(k1="mail")
    await keys.application("k1")
    for i in range(100):
        with pytest.raises(Unauthorized):
            await keys.application(f"wrong{i}")
    assert len(keys.door._cache) == 10
    assert await keys.application("k1") == "mail"


async def test_a_cached_key_works_while_the_database_is_away():
    keys = Keys(k1="mail")
    await keys.application("k1")
    keys.away = True
    keys.now += VALID_KEY_TTL_S
    assert await keys.application("k1") == "mail"


async def test_an_uncached_key_needs_the_database():
    keys = Keys(k1="mail")
    with pytest.raises(Unauthorized):
        await keys.application("k2")
    keys.away = True
    keys.now += UNKNOWN_KEY_TTL_S
    for key in ("k1", "k2"):
        with pytest.raises(KeysUnavailable):
            await keys.application(key)
    keys.away = False
    assert await keys.application("k1") == "mail"


ADMIN_KEY = "open-sesame-open-sesame"


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {ADMIN_KEY}"}, {"x-api-key": ADMIN_KEY}])
def test_the_admin_key_is_accepted(headers):
    assert require_admin(ADMIN_KEY, headers) is None


@pytest.mark.parametrize("key", ["", "open", ADMIN_KEY[:-1], ADMIN_KEY + "x", ADMIN_KEY.upper(), "ünïcode"])
def test_another_key_is_rejected(key):
    with pytest.raises(Unauthorized) as refusal:
        require_admin(ADMIN_KEY, {"authorization": f"Bearer {key}"})
    assert ADMIN_KEY not in str(refusal.value)


def test_without_an_admin_key_every_request_is_rejected():
    for headers in ({}, {"authorization": "Bearer "}, {"x-api-key": ""}, {"x-api-key": "None"}):
        with pytest.raises(Forbidden):
            require_admin(None, headers)


def test_admin_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda *pair: compared.append(pair) or compare(*pair))
    with pytest.raises(Unauthorized):
        require_admin(ADMIN_KEY, {"x-api-key": "x"})
    assert compared == [(b"x", ADMIN_KEY.encode())]
