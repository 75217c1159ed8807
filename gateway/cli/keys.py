"""`magnus keys`: applications' API keys."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

import typer
from rich.table import Table

from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, print_json, read_settings
from gateway.cli.resources import on_database
from gateway.config import Settings
from gateway.storage.keys import KeyStore

app = typer.Typer(help="Applications' API keys.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def create(
    app_name: Annotated[str, typer.Option("--app", help="The application that the key stands for.")],
    label: Annotated[str, typer.Option(help="What tells this key from others of the application.")] = "",
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Make a key; it is shown once and never again."""
    if not app_name.strip() or len(app_name) > 128:
        bad_input("--app: 1 to 128 characters")

    async def work(keys: KeyStore) -> None:
        key, kept = await keys.create(app_name, label)
        if as_json:
            print_json({"key": key, "id": kept.id, "app": kept.app, "label": kept.label})
        else:
            console.print(key, markup=False, soft_wrap=True)

    _with_keys(read_settings(config), work)


@app.command("list")
def list_keys(
    app_name: Annotated[str | None, typer.Option("--app", help="Of this application alone.")] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """List the keys, by their first characters."""

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
    key_id: Annotated[int, typer.Argument(metavar="ID", help="As in `magnus keys list`.")],
    config: ConfigOption = None,
) -> None:
    """Revoke a key; within half a minute it works nowhere."""

    async def work(keys: KeyStore) -> None:
        if not await keys.revoke(key_id):
            bad_input(f"no valid key has the id {key_id}")
        console.print(f"Key {key_id} is revoked.")

    _with_keys(read_settings(config), work)


def _with_keys(settings: Settings, work: Callable[[KeyStore], Coroutine[Any, Any, None]]) -> None:
    on_database(settings, lambda engine: work(KeyStore(engine)))
