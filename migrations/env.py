"""Alembic's entry point.

The gateway migrates on its own connection (`gateway.storage.migrate`). A developer names a database:
`alembic -x url=postgresql+asyncpg://… revision --autogenerate -m …`.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gateway.storage.tables import is_declared, metadata


def run(connection: Connection) -> None:
    """Run the migrations on `connection`, in its transaction if it has one."""
    context.configure(connection=connection, target_metadata=metadata, include_name=is_declared)
    with context.begin_transaction():
        context.run_migrations()


async def run_at(url: str) -> None:
    """Run the migrations in the database at `url`."""
    async with create_async_engine(url, poolclass=NullPool).connect() as connection:
        await connection.run_sync(run)


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    asyncio.run(run_at(context.get_x_argument(as_dictionary=True)["url"]))
