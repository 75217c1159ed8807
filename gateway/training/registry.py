"""The versions of the length model in Postgres; at most one version serves.

```
challenger ──promote──> serving ──promote another──> retired ──promote, rollback──> serving
     └──reject──> rejected <──rollback── serving
```

A version that was rolled back counts as rejected, so a second rollback goes further back. An operator can promote any
version again.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.errors import UnknownVersion
from gateway.storage.tables import length_models

ModelStatus = Literal["challenger", "serving", "retired", "rejected"]

_ADVISORY_LOCK = 0x6D6F64656C73
"""Key of the lock under which the serving version changes."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A version without its artifact.

    It was fitted to requests that arrived from `window_start` to `fitted_until`, and compared on later ones.
    """

    version: int
    created_at: datetime
    status: ModelStatus
    served_at: datetime | None
    rows: int
    window_start: datetime
    window_end: datetime
    fitted_until: datetime
    features_version: str
    metrics: dict[str, Any]


class ServingModel(msgspec.Struct, frozen=True):
    """The version that serves, with the bytes of its model."""

    info: ModelInfo
    artifact: bytes


class NewModel(msgspec.Struct, frozen=True, kw_only=True):
    """A newly trained model."""

    rows: int
    window_start: datetime
    window_end: datetime
    fitted_until: datetime
    features_version: str
    metrics: Mapping[str, Any]
    artifact: bytes


KEPT_NEWEST = 20
KEPT_SERVED = 5
"""Versions that are kept: the newest, and those that served last. A model takes megabytes."""

_FORGET = delete(length_models).where(
    length_models.c.version.not_in(
        select(length_models.c.version).order_by(length_models.c.version.desc()).limit(KEPT_NEWEST)
    ),
    length_models.c.version.not_in(
        select(length_models.c.version)
        .where(length_models.c.served_at.is_not(None))
        .order_by(length_models.c.served_at.desc())
        .limit(KEPT_SERVED)
    ),
)

_INFO = [length_models.c[name] for name in ModelInfo.__struct_fields__]
_IS_SERVING = length_models.c.status == "serving"


class ModelRegistry:
    """Reads and changes the table of versions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add_challenger(self, model: NewModel) -> int:
        """Store a trained model and delete old ones. Returns its version number, which is higher than all before."""
        values = {**msgspec.structs.asdict(model), "status": "challenger"}
        async with self._engine.begin() as connection:
            version: int = (
                await connection.execute(insert(length_models).values(values).returning(length_models.c.version))
            ).scalar_one()
            await connection.execute(_FORGET)
        return version

    async def promote(self, version: int) -> None:
        """Let a version serve in place of the present one.

        Raises:
            UnknownVersion: there is no version with this number.
        """
        async with self._engine.begin() as connection:
            await _lock(connection)
            await connection.execute(update(length_models).where(_IS_SERVING).values(status="retired"))
            await _begin_to_serve(connection, version)

    async def reject(self, version: int) -> None:
        """Mark a challenger as rejected."""
        lost = (length_models.c.version == version) & (length_models.c.status == "challenger")
        async with self._engine.begin() as connection:
            await connection.execute(update(length_models).where(lost).values(status="rejected"))

    async def rollback(self) -> int | None:
        """Reject the serving version and let the version before it serve again.

        Returns:
            The version that serves now; None if there is none, so history alone predicts.

        Raises:
            UnknownVersion: no version serves.
        """
        async with self._engine.begin() as connection:
            await _lock(connection)
            rolled_back = await connection.execute(update(length_models).where(_IS_SERVING).values(status="rejected"))
            if not rolled_back.rowcount:
                raise UnknownVersion("no version serves, so there is nothing to roll back")
            previous: int | None = await connection.scalar(
                select(length_models.c.version)
                .where(length_models.c.status == "retired")
                .order_by(length_models.c.served_at.desc())
                .limit(1)
            )
            if previous is not None:
                await _begin_to_serve(connection, previous)
        return previous

    async def list(self) -> list[ModelInfo]:
        """Return all versions, the newest first."""
        async with self._engine.connect() as connection:
            rows = await connection.execute(select(*_INFO).order_by(length_models.c.version.desc()))
            return [ModelInfo(**row) for row in rows.mappings()]

    async def newest(self, features_version: str) -> ModelInfo | None:
        """Return the newest version for this version of the features, with any status."""
        of_version = length_models.c.features_version == features_version
        query = select(*_INFO).where(of_version).order_by(length_models.c.version.desc()).limit(1)
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        return None if row is None else ModelInfo(**row)

    async def serving_version(self, features_version: str) -> int | None:
        """Return the number of the serving version for this version of the features; one index look-up."""
        query = select(length_models.c.version).where(_IS_SERVING, length_models.c.features_version == features_version)
        async with self._engine.connect() as connection:
            version: int | None = await connection.scalar(query)
        return version

    async def serving(self, features_version: str) -> ServingModel | None:
        """Load the serving version for this version of the features."""
        query = select(*_INFO, length_models.c.artifact).where(
            _IS_SERVING, length_models.c.features_version == features_version
        )
        async with self._engine.connect() as connection:
            row = (await connection.execute(query)).mappings().one_or_none()
        if row is None:
            return None
        return ServingModel(ModelInfo(**{column.name: row[column.name] for column in _INFO}), row["artifact"])


async def _lock(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


async def _begin_to_serve(connection: AsyncConnection, version: int) -> None:
    chosen = update(length_models).where(length_models.c.version == version)
    changed = await connection.execute(chosen.values(status="serving", served_at=func.clock_timestamp()))
    if not changed.rowcount:
        raise UnknownVersion(f"there is no version {version}")
