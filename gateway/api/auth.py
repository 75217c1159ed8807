"""Who is calling: the key names the application; in open mode a header does, or else the system prompt."""

import hashlib
import hmac
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping

from gateway.errors import Forbidden, InvalidRequest, KeysUnavailable, Unauthorized
from gateway.storage.keys import hash_key

ANONYMOUS = "anonymous"
"""The application of requests that name none and have no system prompt."""

KNOWN_FOR_S = 30.0
"""How long a key's application is believed: a revoked key works so much longer."""

UNKNOWN_FOR_S = 2.0
"""How long a key is believed not to exist."""

MAX_KEYS = 10_000
_APP_ID = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,126}[\x21-\x7e])?")

Lookup = Callable[[bytes], Awaitable[str | None]]
"""A key's hash to its application's name; raises `KeysUnavailable`."""


def bearer(headers: Mapping[str, str]) -> str | None:
    """Return the key of an `Authorization: Bearer` header, or of Anthropic's `x-api-key`."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def application_of_system_prompt(system: str | None) -> str:
    """Name the application of a request that names none: the same system prompt is the same application."""
    return ANONYMOUS if system is None else "system-" + hashlib.sha256(system.encode()).hexdigest()[:12]


class OpenAccess:
    """Loopback only: everybody may call; `X-App-Id` names the application."""

    async def application(self, headers: Mapping[str, str]) -> str | None:
        """Return the application that the header names, if it does.

        Raises:
            InvalidRequest: over 128 characters, or not printable ASCII.
        """
        app = headers.get("x-app-id")
        if app is not None and not _APP_ID.fullmatch(app):
            raise InvalidRequest("X-App-Id must be 1 to 128 printable ASCII characters", param="X-App-Id")
        return app


class KeyAuthenticator:
    """Every caller needs a key; its application is the key's."""

    def __init__(self, lookup: Lookup, monotonic: Callable[[], float]) -> None:
        self._lookup = lookup
        self._monotonic = monotonic
        self._seen: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()

    async def application(self, headers: Mapping[str, str]) -> str | None:
        """Return the key's application.

        Raises:
            Unauthorized: no key, or one that is unknown or revoked.
            KeysUnavailable: keys cannot be looked up, and this one is new here.
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
        app, until_s = self._seen.get(digest, (None, 0.0))
        if now < until_s:
            return app
        try:
            app = await self._lookup(digest)
        except KeysUnavailable:
            if app is None:
                raise
            return app  # what was true half a minute ago is the best that is known
        self._seen[digest] = app, now + (UNKNOWN_FOR_S if app is None else KNOWN_FOR_S)
        self._seen.move_to_end(digest)
        if len(self._seen) > MAX_KEYS:
            self._seen.popitem(last=False)
        return app


Authenticator = OpenAccess | KeyAuthenticator


def require_admin(admin_key: str | None, headers: Mapping[str, str]) -> None:
    """Let nobody pass but with the admin key.

    Raises:
        Forbidden: no admin key is configured, so there is no way in.
        Unauthorized: no key, or another.
    """
    if admin_key is None:
        raise Forbidden("The admin routes are closed: auth.admin_key is not set")
    given = bearer(headers) or ""
    if not hmac.compare_digest(given.encode(), admin_key.encode()):
        raise Unauthorized("The admin key is missing or not valid")
