"""What commands beside the gateway share that work on its database."""

from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.cli.options import failed, run
from gateway.config import Settings
from gateway.errors import EmbeddedPostgresError
from gateway.server.app import data_dir
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.embedded import database_url
from gateway.storage.engine import create_history_engine
from gateway.storage.migrate import upgrade

Work = Callable[[AsyncEngine], Awaitable[None]]


def on_database(settings: Settings, work: Work) -> None:
    """Run `work` on the configured database, brought to this version's schema; ends the command where it cannot."""
    try:
        run(_connected(settings, work))
    except (EmbeddedPostgresError, *DATABASE_ERRORS) as error:
        failed(f"the database cannot be used: {error}")


async def _connected(settings: Settings, work: Work) -> None:
    async with database_url(settings.database.url, data_dir(settings)) as url:
        await upgrade(url)
        engine = create_history_engine(url, pool_size=2)
        try:
            await work(engine)
        finally:
            await engine.dispose()
