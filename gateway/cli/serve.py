"""`magnus serve` and `magnus db upgrade`."""

from collections.abc import Callable

import typer

from gateway.cli.options import DEFAULT_CONFIG, ConfigOption, err, failed, read_settings, run
from gateway.config import Settings, data_dir, load
from gateway.errors import EmbeddedPostgresError, JournalInUse, ListenError
from gateway.server.serve import running
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.embedded import database_url
from gateway.storage.migrate import upgrade
from gateway.telemetry import logs

START_ERRORS = (ListenError, EmbeddedPostgresError, JournalInUse)
"""What keeps a gateway from starting, each with a message for its operator."""

db = typer.Typer(help="The database.", no_args_is_help=True, rich_markup_mode=None)


def serve(config: ConfigOption = None) -> None:
    """Run the gateway."""
    config = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    settings = read_settings(config)
    logs.configure(settings.log.level, settings.log.format)
    try:
        run(_serve(settings, lambda: load(config)))
    except START_ERRORS as error:
        failed(error)


async def _serve(settings: Settings, read: Callable[[], Settings]) -> None:
    if not settings.backends:
        err.print("magnus: no backends are configured: every request will be answered 503", style="yellow")
    async with running(settings, read) as gateway:
        err.print(f"Magnus answers at {gateway.url}/v1", markup=False, soft_wrap=True)
        await gateway.stopped()


@db.command("upgrade")
def db_upgrade(config: ConfigOption = None) -> None:
    """Bring the database to this version's schema."""
    settings = read_settings(config)
    try:
        run(_upgrade(settings))
    except (EmbeddedPostgresError, *DATABASE_ERRORS) as error:
        failed(f"the database cannot be upgraded: {error}")


async def _upgrade(settings: Settings) -> None:
    async with database_url(settings.database.url, data_dir(settings)) as url:
        await upgrade(url)
    err.print("The database is up to date.")
