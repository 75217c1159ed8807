"""Fixtures that several kinds of tests share."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import URL, make_url

from bench.vllm_environment.engine import Engine, running_engine
from gateway.storage.embedded import EmbeddedPostgres
from gateway.storage.migrate import upgrade
from tests.databases import database_at, execute, fresh_database

_TEMPLATE = "magnus_template"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[URL]:
    """A Postgres server for the whole run, with a migrated template database."""
    home: Path = tmp_path_factory.mktemp("postgres")
    async with EmbeddedPostgres(home) as url:
        server = make_url(url)
        # These databases outlive no test, so nothing has to reach the disk.
        await execute(server, "ALTER SYSTEM SET fsync = off")
        await execute(server, "SELECT pg_reload_conf()")
        await execute(server, f"CREATE DATABASE {_TEMPLATE}")
        await upgrade(database_at(server, _TEMPLATE))
        yield server


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The real engine of the whole run: it takes half a minute to start."""
    with running_engine(tmp_path_factory.mktemp("vllm")) as engine:
        yield engine


@pytest.fixture
async def empty_database_url(postgres_server: URL) -> AsyncIterator[str]:
    """A database of the test's own without any table."""
    async with fresh_database(postgres_server, "template1") as url:
        yield url


@pytest.fixture
async def database_url(postgres_server: URL) -> AsyncIterator[str]:
    """A database of the test's own, migrated and empty."""
    async with fresh_database(postgres_server, _TEMPLATE) as url:
        yield url
