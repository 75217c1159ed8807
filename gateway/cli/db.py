"""`magnus db upgrade`: migrates the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from gateway.cli.options import ConfigOption, err, read_settings
from gateway.cli.resources import on_database

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

app = typer.Typer(help="Migrate the database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _db() -> None:
    """Migrate the database."""


@app.command()
def upgrade(config: ConfigOption = None) -> None:
    """Migrate the database to this version's schema."""

    async def work(_: AsyncEngine) -> None:
        err.print("The database is up to date.")

    on_database(read_settings(config), work)
