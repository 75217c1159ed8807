"""Backends that were added at run time, stored for the gateway's next start."""

from typing import Any

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.tables import backends


class StoredBackend(msgspec.Struct, frozen=True):
    """One backend: its name, its other settings, and whether it is draining."""

    name: str
    fields: dict[str, Any]
    draining: bool = False


class BackendStore:
    """The table of backends."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def list(self) -> list[StoredBackend]:
        """Return the backends, the oldest first."""
        query = select(backends.c.name, backends.c.fields, backends.c.draining).order_by(
            backends.c.created_at, backends.c.name
        )
        async with self._engine.connect() as connection:
            return [StoredBackend(*row) for row in await connection.execute(query)]

    async def save(self, backend: StoredBackend) -> None:
        """Store a backend. It replaces the stored backend with the same name, if there is one."""
        values = {"fields": backend.fields, "draining": backend.draining}
        inserted = insert(backends).values(name=backend.name, **values)
        upsert = inserted.on_conflict_do_update(index_elements=["name"], set_={**values, "changed_at": func.now()})
        async with self._engine.begin() as connection:
            await connection.execute(upsert)

    async def remove(self, name: str) -> None:
        """Delete a backend. An unknown name is no error."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(backends).where(backends.c.name == name))
