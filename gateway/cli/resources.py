"""The database and the embedder that the settings name, for commands that run beside the gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from gateway.cli.options import err, failed, run
from gateway.config import Settings, data_dir
from gateway.errors import EmbeddedPostgresError

if TYPE_CHECKING:  # both packages take long to import, and most commands need only one of them
    from sqlalchemy.ext.asyncio import AsyncEngine

    from gateway.prediction.embedder import Embedder


def on_database(settings: Settings, work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Migrate the configured database to this version's schema and run `work` on it.

    If the database cannot be used, print one line on stderr and exit with code 1.
    """
    from gateway.storage.database import DATABASE_ERRORS

    try:
        run(_with_database(settings, work))
    except (EmbeddedPostgresError, *DATABASE_ERRORS) as error:
        failed(f"the database cannot be used: {error}")


async def _with_database(settings: Settings, work: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    from gateway.storage.database import create_database_engine
    from gateway.storage.embedded import database_url
    from gateway.storage.migrate import upgrade

    async with database_url(settings.database.url, data_dir(settings)) as url:
        await upgrade(url)
        engine = create_database_engine(url, pool_size=2)
        try:
            await work(engine)
        finally:
            await engine.dispose()


def configured_embedder(settings: Settings) -> Embedder:
    """Load the embedder of `prediction.embedder`."""
    from gateway.prediction.embedder import load_embedder

    with err.status("Loading the embedder"):
        return load_embedder(settings.prediction.embedder)
