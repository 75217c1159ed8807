"""`magnus predictor`: the versions of the length model."""

from typing import Annotated

import typer
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.cli.options import ConfigOption, JsonOption, bad_input, console, print_json, read_settings
from gateway.cli.resources import on_database
from gateway.errors import UnknownVersion
from gateway.training.registry import ModelInfo, ModelRegistry

app = typer.Typer(help="Versions of the length model.", no_args_is_help=True, rich_markup_mode=None)


@app.command("list")
def list_versions(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the versions with their metrics, the newest first."""

    async def work(engine: AsyncEngine) -> None:
        found = await ModelRegistry(engine).list()
        if as_json:
            print_json({"versions": found})
        else:
            console.print(_table(found))

    on_database(read_settings(config), work)


@app.command()
def promote(
    version: Annotated[int, typer.Argument(help="The version, from `magnus predictor list`.")],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Let a version serve. Running gateways load it within seconds."""

    async def work(engine: AsyncEngine) -> None:
        try:
            await ModelRegistry(engine).promote(version)
        except UnknownVersion as error:
            bad_input(str(error))
        _print_serving(version, as_json=as_json)

    on_database(read_settings(config), work)


@app.command()
def rollback(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """Undo the last promotion. The previous version serves; without one, predictions use history only."""

    async def work(engine: AsyncEngine) -> None:
        try:
            version = await ModelRegistry(engine).rollback()
        except UnknownVersion as error:
            bad_input(str(error))
        _print_serving(version, as_json=as_json)

    on_database(read_settings(config), work)


def _print_serving(version: int | None, *, as_json: bool) -> None:
    if as_json:
        print_json({"serving": version})
    else:
        console.print(
            "No version serves. Predictions use history only." if version is None else f"Version {version} serves."
        )


def _table(versions: list[ModelInfo]) -> Table:
    table = Table("version", "status", "trained", title="Length models")
    for heading in ("rows", "MAE", "p90 covers"):
        table.add_column(heading, justify="right")
    for model in versions:
        figures = (model.metrics.get("mae"), model.metrics.get("p90_coverage"))
        table.add_row(
            str(model.version),
            model.status,
            f"{model.created_at:%Y-%m-%d %H:%M}",
            f"{model.rows:,}",
            *("-" if figure is None else f"{figure:.4g}" for figure in figures),
        )
    return table
