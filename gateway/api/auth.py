"""Authentication: the API key names the application. In open mode a header does, or else the system prompt."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping

from cachetools import LRUCache

from gateway.errors import Forbidden, InvalidRequest, KeysUnavailable, Unauthorized
from gateway.storage.keys import hash_key

ANONYMOUS = "anonymous"
"""The application of a request without an application name and without a system prompt."""

VALID_KEY_TTL_S = 30.0
"""How long the result for a valid key is cached; a revoked key works until then."""

UNKNOWN_KEY_TTL_S = 2.0
"""How long the result for an unknown key is cached."""

MAX_KEYS = 10_000
"""Largest number of cached keys."""

_APP_ID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")

Lookup = Callable[[bytes], Awaitable[str | None]]
"""Returns the application of a key's hash, None for an unknown key; raises `KeysUnavailable`."""


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the key of a request: `Authorization: Bearer KEY`, a bare key there, `x-api-key` or `api-key`.

    Another scheme, for example `Basic`, has no key.
    """
    first, _, rest = headers.get("authorization", "").strip().partition(" ")
    bare = "" if rest else first
    key = rest.strip() if first.lower() == "bearer" else bare
    return key or headers.get("x-api-key") or headers.get("api-key")


def application_of_system_prompt(system: str | None) -> str:
    """Return the application of a request that names none; equal system prompts give equal applications."""
    return ANONYMOUS if system is None else "system-" + hashlib.sha256(system.encode()).hexdigest()[:12]


class OpenAccess:
    """Accepts every request; `X-App-Id` names the application. The gateway then listens on loopback only."""

    async def application(self, headers: Mapping[str, str]) -> str | None:
        """Return the application in the header; None without the header.

        Raises:
            InvalidRequest: more than 128 characters, or not printable ASCII.
        """
        app = headers.get("x-app-id")
        if app is not None and not _APP_ID.fullmatch(app):
            raise InvalidRequest("X-App-Id: must be 1 to 128 printable ASCII characters", param="X-App-Id")
        return app


class KeyAuthenticator:
    """Requires an API key, which names the application.

    Args:
        lookup: returns the application of a key's hash.
        monotonic: returns the time in seconds.
    """

    def __init__(self, lookup: Lookup, monotonic: Callable[[], float]) -> None:
        self._lookup = lookup
        self._monotonic = monotonic
        self._cache: LRUCache[bytes, tuple[str | None, float]] = LRUCache(MAX_KEYS)

    async def application(self, headers: Mapping[str, str]) -> str | None:
        """Return the key's application.

        Raises:
            Unauthorized: no key, or an unknown or revoked key.
            KeysUnavailable: the key is not cached and cannot be looked up.
        """
        key = bearer(headers)
        if key is None:
            raise Unauthorized("No API key given: send it as 'Authorization: Bearer KEY'")
        app = await self._application_of(hash_key(key))
        if app is None:
            raise Unauthorized("The API key is not valid")
        return app

    async def _application_of(self, digest: bytes) -> str | None:
        now = self._monotonic()
        app, until_s = self._cache.get(digest, (None, 0.0))
        if now < until_s:
            return app
        try:
            app = await self._lookup(digest)
        except KeysUnavailable:
            if app is None:
                raise
            return app  # an outdated result is better than none
        self._cache[digest] = app, now + (UNKNOWN_KEY_TTL_S if app is None else VALID_KEY_TTL_S)
        return app


Authenticator = OpenAccess | KeyAuthenticator


def require_admin(admin_key: str | None, headers: Mapping[str, str]) -> None:
    """Reject a request without the admin key.

    Raises:
        Forbidden: no admin key is configured.
        Unauthorized: the request has no key, or a wrong one.
    """
    if admin_key is None:
        raise Forbidden("The admin routes are closed: auth.admin_key is not set")
    given = bearer(headers) or ""
    if not hmac.compare_digest(given.encode(), admin_key.encode()):
        raise Unauthorized("The admin key is missing or not valid")
