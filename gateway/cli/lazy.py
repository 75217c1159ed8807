"""A command group that imports a command only when it runs, because most commands need few packages."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup


def lazy_group(commands: Mapping[str, tuple[str, str]]) -> type[TyperGroup]:
    """Return a group class for typer.

    Args:
        commands: by name, the location of each command as `module:attribute`, and its one-line help.
    """

    class Group(TyperGroup):
        """The commands by name."""

        def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401 - click's type, which typer vendors
            return list(commands)

        def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
            if cmd_name not in commands:
                return None
            module, _, attribute = commands[cmd_name][0].partition(":")
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
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()])

    return Group
