"""`magnus keys`: API keys of applications."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, print_json, read_settings
from gateway.cli.resources import on_database
from gateway.config import Settings

if TYPE_CHECKING:  # SQLAlchemy takes long to import, and `--help` does not need it
    from gateway.storage.keys import KeyStore

app = typer.Typer(help="API keys of applications.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    app_name: Annotated[str, typer.Option("--app", help="Name of the application that uses the key.")],
    label: Annotated[str, typer.Option(help="Text by which you recognise the key.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Create an API key and print it. It cannot be shown again."""
    if not app_name.strip() or len(app_name) > 128:
        bad_input("--app: must have 1 to 128 characters")

    async def work(keys: KeyStore) -> None:
        key, stored = await keys.create(app_name, label)
        if as_json:
            print_json({"key": key, "id": stored.id, "app": stored.app, "label": stored.label})
        else:
            console.print(key, markup=False, soft_wrap=True)

    _with_keys(read_settings(config), work)


@app.command("list")
def list_keys(
    app_name: Annotated[str | None, typer.Option("--app", help="List only this application's keys.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List the API keys by their first characters."""

    async def work(keys: KeyStore) -> None:
        found = await keys.list(app_name)
        if as_json:
            print_json({"keys": found})
            return
        table = Table("id", "application", "key", "label", "created", "revoked")
        for key in found:
            times = (f"{moment:%Y-%m-%d %H:%M}" if moment else "" for moment in (key.created_at, key.revoked_at))
            table.add_row(str(key.id), key.app, f"{key.prefix}…", key.label, *times)
        console.print(table)

    _with_keys(read_settings(config), work)


@app.command()
def revoke(
    key_id: Annotated[int, typer.Argument(metavar="ID", help="The key's id, from `magnus keys list`.")],
    config: ConfigOption = None,
) -> None:
    """Revoke an API key. Running gateways reject it within 30 seconds."""

    async def work(keys: KeyStore) -> None:
        if not await keys.revoke(key_id):
            bad_input(f"ID: there is no valid key with id {key_id}; see `magnus keys list`")
        console.print(f"Key {key_id} is revoked.")

    _with_keys(read_settings(config), work)


def _with_keys(settings: Settings, work: Callable[[KeyStore], Coroutine[Any, Any, None]]) -> None:
    from gateway.storage.keys import KeyStore

    on_database(settings, lambda engine: work(KeyStore(engine)))
