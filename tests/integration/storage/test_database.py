"""The URL of the database, as it reaches a server."""

import asyncio
import struct
from urllib.parse import quote

import pytest
from sqlalchemy import make_url, text

from gateway.storage.database import DATABASE_ERRORS, create_database_engine
from gateway.storage.migrate import upgrade

SSL_REQUEST = 80877103


async def ask(url, query="SELECT 1"):
    engine = create_database_engine(url)
    try:
        async with engine.connect() as connection:
            return (await connection.execute(text(query))).scalar_one()
    finally:
        await engine.dispose()


def spelled(url, scheme, options=""):
    """Write the URL of the test's database in another way: the socket's folder is the host."""
    parsed = make_url(url)
    folder, port = quote(str(parsed.query["host"]), safe=""), parsed.query["port"]
    return f"{scheme}://{parsed.username}:p%2F%40ss@{folder}:{port}/{parsed.database}{options}"


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_every_spelling_of_postgres_connects(database_url, scheme):
    assert await ask(spelled(database_url, scheme)) == 1
    await upgrade(spelled(database_url, scheme, "?sslmode=prefer&connect_timeout=5"))


@pytest.mark.parametrize(
    ("options", "query", "expected"),
    [
        ("", "SHOW application_name", "magnus"),
        ("?application_name=mine", "SHOW application_name", "mine"),
        ("?options=-c%20statement_timeout%3D4321", "SHOW statement_timeout", "4321ms"),
        ("?target_session_attrs=read-write", "SHOW transaction_read_only", "off"),
        ("?statement_cache_size=0&prepared_statement_cache_size=0", "SHOW timezone", "UTC"),
    ],
)
async def test_options_of_libpq_work(database_url, options, query, expected):
    assert await ask(spelled(database_url, "postgresql", options), query) == expected


@pytest.mark.parametrize(("mode", "asks_for_tls"), [("require", True), ("prefer", True), ("disable", False)])
async def test_sslmode_decides_whether_tls_is_asked_for(mode, asks_for_tls):
    codes = []

    async def hang_up(reader, writer):
        codes.append(struct.unpack("!II", await reader.readexactly(8))[1])
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DATABASE_ERRORS):
            await ask(f"postgresql://u:p@127.0.0.1:{port}/x?sslmode={mode}")
    assert (codes[0] == SSL_REQUEST) is asks_for_tls
