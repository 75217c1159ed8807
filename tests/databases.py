"""Databases of the tests, on one Postgres server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from urllib.parse import unquote

import asyncpg
from sqlalchemy import URL

_numbers = count(1)


async def execute(server: URL, statement: str) -> None:
    """Run one statement in the server's maintenance database."""
    where = {name: unquote(str(value)) for name, value in server.query.items()}
    connection = await asyncpg.connect(
        host=where["host"], port=int(where["port"]), user=server.username, database="postgres"
    )
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def database_at(server: URL, name: str) -> str:
    """Return the URL of a database on the server."""
    return server.set(database=name).render_as_string(hide_password=False)


@asynccontextmanager
async def fresh_database(server: URL, template: str = "template1") -> AsyncIterator[str]:
    """Create a database, by default an empty one, and drop it at the end of the block."""
    name = f"test_{next(_numbers)}"
    await execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield database_at(server, name)
    await execute(server, f"DROP DATABASE {name} WITH (FORCE)")
