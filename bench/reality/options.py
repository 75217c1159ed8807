"""Arguments, progress and result files that both reality benchmarks share."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer

FilesArgument = Annotated[
    list[Path],
    typer.Argument(help="Rows with prompts and output_tokens: JSON lines, plain or .gz.", exists=True, dir_okay=False),
]
ResultsOption = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for the page and the figures.")]


def progress_line(text: str) -> None:
    """Overwrite the progress line on a terminal; write a new line elsewhere."""
    sys.stderr.write(f"\r\x1b[K{text}" if sys.stderr.isatty() else f"{text}\n")
    sys.stderr.flush()


def write_results(folder: Path, name: str, page: str, figures: object) -> None:
    """Write a page and its figures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(page)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
