"""Migrations of a database to the schema of this version."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from gateway.storage.database import create_single_use_engine

_ADVISORY_LOCK = 0x6D61676E7573
"""The lock makes two gateways that start together migrate one after the other."""


def migrations_directory() -> Path:
    """Return the directory of the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


async def upgrade(url: str) -> None:
    """Apply the missing migrations to the database at `url`, in one transaction."""
    engine = create_single_use_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.run_sync(lambda synchronous: command.upgrade(_config(synchronous), "head"))
    finally:
        await engine.dispose()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
