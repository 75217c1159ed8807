"""Options, output and errors that several commands share."""

import os
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
import uvloop
from rich.console import Console

from gateway.config import Settings, load
from gateway.errors import SettingsError

console = Console(highlight=False)
err = Console(stderr=True, highlight=False)

DEFAULT_CONFIG = Path("magnus.toml")

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="MAGNUS_CONFIG", help="Settings file. [magnus.toml in the current folder, if it exists]"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]


def read_settings(config: Path | None) -> Settings:
    """Return the settings, by default from `magnus.toml` in the current folder. A wrong setting ends the command."""
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    try:
        return load(config, os.environ)
    except SettingsError as error:
        bad_input(error)


def bad_input(error: Exception | str) -> NoReturn:
    """Print an error that the user can correct as one line on stderr, and exit with code 2."""
    err.print(f"magnus: {error}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(2)


def failed(error: Exception | str) -> NoReturn:
    """Print an error of the environment as one line on stderr, and exit with code 1."""
    err.print(f"magnus: {error}", style="red", markup=False, soft_wrap=True)
    raise typer.Exit(1)


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a command's coroutine."""
    uvloop.run(main)


def print_json(value: object) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


@contextmanager
def bytes_read(label: str, paths: Sequence[Path]) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr while files are read.

    Yields:
        A function that takes the number of bytes read since its last call.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    total = sum(path.stat().st_size for path in paths if path.is_file())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)
