"""Arguments and options that several prediction benchmarks share."""

from pathlib import Path
from typing import Annotated

import typer

FilesArgument = Annotated[
    list[Path], typer.Argument(help="Rows of past requests: JSON lines, plain or .gz.", exists=True, dir_okay=False)
]
InstructionsOption = Annotated[Path | None, typer.Option(help="JSON file with the system prompts by app and task.")]
SeedOption = Annotated[int, typer.Option(help="Seed of the division into training and test rows.")]
TreesOption = Annotated[int, typer.Option(help="Trees of the length model.")]
