"""API keys. A key is shown once, when it is created. The database stores its SHA-256."""

import hashlib
import secrets
from collections.abc import Callable
from datetime import datetime

import msgspec
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.errors import KeysUnavailable
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.tables import api_keys, applications

_PREFIX = "mg-"
_RANDOM_BYTES = 24
_PREFIX_CHARACTERS = len(_PREFIX) + 6


class ApiKey(msgspec.Struct, frozen=True):
    """A stored key. `prefix` is the start of the key, by which people recognise it."""

    id: int
    app: str
    prefix: str
    label: str
    created_at: datetime
    revoked_at: datetime | None


def generate_key() -> str:
    """Return a new key: `mg-` and 32 URL-safe characters (192 random bits)."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def hash_key(key: str) -> bytes:
    """Return the hash that is stored. Keys are random, so a fast hash without salt is enough.

    >>> hash_key("mg-").hex()[:8]
    '9bfe1ab2'
    """
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


class KeyStore:
    """The table of API keys."""

    def __init__(self, engine: AsyncEngine, on_fallback: Callable[[str], None] = lambda _: None) -> None:
        self._engine = engine
        self._on_fallback = on_fallback

    async def create(self, app: str, label: str = "") -> tuple[str, ApiKey]:
        """Create a key, and its application if that does not exist.

        Returns:
            The key, which cannot be read again later, and the stored data.
        """
        key = generate_key()
        async with self._engine.begin() as connection:
            values = {
                "application_id": await _application_id(connection, app),
                "sha256": hash_key(key),
                "prefix": key[:_PREFIX_CHARACTERS],
                "label": label,
            }
            statement = insert(api_keys).values(values).returning(api_keys.c.id, api_keys.c.created_at)
            key_id, created_at = (await connection.execute(statement)).one()
        return key, ApiKey(key_id, app, key[:_PREFIX_CHARACTERS], label, created_at, None)

    async def list(self, app: str | None = None) -> list[ApiKey]:
        """Return the keys of one application, or of all if `app` is None, the oldest first. Includes revoked keys."""
        columns = (api_keys.c.id, applications.c.name, api_keys.c.prefix, api_keys.c.label)
        query = (
            select(*columns, api_keys.c.created_at, api_keys.c.revoked_at).join(applications).order_by(api_keys.c.id)
        )
        if app is not None:
            query = query.where(applications.c.name == app)
        async with self._engine.connect() as connection:
            return [ApiKey(*row) for row in await connection.execute(query)]

    async def revoke(self, key_id: int) -> bool:
        """Revoke a key permanently. Return whether it was valid before."""
        valid = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
        async with self._engine.begin() as connection:
            revoked = await connection.execute(update(api_keys).where(valid).values(revoked_at=func.now()))
        return revoked.rowcount == 1

    async def lookup(self, key_hash: bytes) -> str | None:
        """Return the application of a key, given its `hash_key`; None if the key is unknown or revoked.

        Raises:
            KeysUnavailable: the database is unavailable.
        """
        valid = (api_keys.c.sha256 == key_hash) & api_keys.c.revoked_at.is_(None)
        try:
            async with self._engine.connect() as connection:
                name: str | None = await connection.scalar(select(applications.c.name).join(api_keys).where(valid))
        except DATABASE_ERRORS as error:
            self._on_fallback("keys_without_database")
            raise KeysUnavailable("API keys cannot be checked now; try again later") from error
        return name


async def _application_id(connection: AsyncConnection, name: str) -> int:
    await connection.execute(insert(applications).values(name=name).on_conflict_do_nothing())
    found = await connection.execute(select(applications.c.id).where(applications.c.name == name))
    application_id: int = found.scalar_one()
    return application_id
