"""Puts the commands together: a command is imported when it is called, since most need little of the rest."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

import gateway

COMMANDS = {
    "serve": ("gateway.cli.serve:serve", "Run the gateway."),
    "demo": ("gateway.cli.demo:demo", "Run the gateway on simulated engines; replay a workload."),
    "engine": ("gateway.cli.engine:engine", "Run one simulated engine."),
    "stats": ("gateway.cli.stats:stats", "Show what a running gateway remembers."),
    "history": ("gateway.cli.history:app", "What the gateway remembers of past requests."),
    "train": ("gateway.cli.train:train", "Train the length predictor now."),
    "evaluate": ("gateway.cli.evaluate:evaluate", "Measure length prediction on past requests."),
    "predictor": ("gateway.cli.predictor:app", "The length predictor's versions."),
    "simulate": ("gateway.cli.simulate:simulate", "Run the scheduling core in simulated time."),
    "keys": ("gateway.cli.keys:app", "Applications' API keys."),
    "db": ("gateway.cli.serve:db", "The database."),
}
"""Name to where the command is, and what it does."""


class _Commands(TyperGroup):
    """The commands by name, each imported when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - click's, vendored by typer
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        command: Any
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
        else:
            single = typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
            single.command(cmd_name)(found)
            command = typer.main.get_command(single)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


app = typer.Typer(
    name="magnus",
    cls=_Commands,
    help="The gateway in front of your own LLM engines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(f"magnus {gateway.__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line."""
    app()
