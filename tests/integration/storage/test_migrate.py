import asyncio
from argparse import Namespace

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gateway.storage.database import create_database_engine
from gateway.storage.migrate import migrations_directory, upgrade
from gateway.storage.tables import is_declared, metadata


def alembic_config(url: str) -> Config:
    config = Config(cmd_opts=Namespace(x=[f"url={url}"]))
    config.set_main_option("script_location", str(migrations_directory()))
    return config


async def in_database(url: str, read):
    engine = create_database_engine(url)
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(read)
    finally:
        await engine.dispose()


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


def differences(connection: Connection) -> list[object]:
    return compare_metadata(MigrationContext.configure(connection, opts={"include_name": is_declared}), metadata)


async def test_migrations_go_up_down_and_up_again(empty_database_url: str):
    await upgrade(empty_database_url)
    assert set(metadata.tables) <= await in_database(empty_database_url, table_names)
    await asyncio.to_thread(command.downgrade, alembic_config(empty_database_url), "base")
    assert await in_database(empty_database_url, table_names) == {"alembic_version"}
    await upgrade(empty_database_url)
    assert set(metadata.tables) <= await in_database(empty_database_url, table_names)


async def test_declared_tables_match_the_migrations(database_url: str):
    assert await in_database(database_url, differences) == []


async def test_developers_command_finds_nothing_to_migrate(database_url: str):
    await asyncio.to_thread(command.check, alembic_config(database_url))


async def test_upgrade_twice_changes_nothing(database_url: str):
    await upgrade(database_url)
    assert await in_database(database_url, differences) == []


async def test_two_gateways_can_upgrade_at_the_same_time(empty_database_url: str):
    await asyncio.gather(*(upgrade(empty_database_url) for _ in range(3)))
    assert await in_database(empty_database_url, differences) == []
