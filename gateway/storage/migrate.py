"""Migrations of a database to the schema of this version."""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gateway.storage.database import CONNECT_TIMEOUT_S

_ADVISORY_LOCK = 0x6D61676E7573
"""The lock makes two gateways that start together migrate one after the other."""


def migrations_directory() -> Path:
    """Return the directory of the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


async def upgrade(url: str, revision: str = "head") -> None:
    """Apply the missing migrations up to `revision` to the database at `url`, in one transaction."""
    await _migrate(url, lambda config: command.upgrade(config, revision))


async def downgrade(url: str, revision: str) -> None:
    """Revert the migrations after `revision`. This drops their tables and columns."""
    await _migrate(url, lambda config: command.downgrade(config, revision))


async def _migrate(url: str, migrate: Callable[[Config], None]) -> None:
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": CONNECT_TIMEOUT_S})
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.run_sync(lambda synchronous: migrate(_config(synchronous)))
    finally:
        await engine.dispose()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
