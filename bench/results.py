"""Result files of the benchmarks: figures as JSON, tables as Markdown, and pictures."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import msgspec

from gateway.cli.options import err, failed

TABLES_BEGIN, TABLES_END = "<!-- generated tables -->", "<!-- end of the generated tables -->"
"""Between these lines of a page the tables are replaced. The rest of the page is written by hand."""


def require_plots() -> None:
    """Exit with an error message if matplotlib is missing, which draws the pictures of `--results`."""
    if find_spec("matplotlib") is None:
        failed("--results needs matplotlib: pip install 'magnus-gateway[plots]'")


def write_results(folder: Path, name: str, figures: msgspec.Struct, page: str, pictures: Iterable[Path]) -> None:
    """Write a benchmark's results, and print the name of each file.

    Exits with an error message if a file cannot be written.

    Args:
        folder: made if it is missing.
        name: of the files without their extension.
        figures: all results, for `NAME.json`.
        page: Markdown for `NAME.md`. If it has tables between `TABLES_BEGIN` and `TABLES_END`, and the file exists with
            such a part, only that part of the file is replaced.
        pictures: an iterator that draws each picture when it is advanced, and yields the picture's file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        json_file, page_file = folder / f"{name}.json", folder / f"{name}.md"
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")
        existing = page_file.read_text() if page_file.exists() else ""
        page_file.write_text(_with_tables(existing, page))
        for path in (json_file, page_file, *pictures):
            err.print(f"magnus: wrote {path}", markup=False, soft_wrap=True)
    except OSError as error:
        failed(f"{folder}: {error.strerror}")


def markdown_line(cells: Iterable[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _with_tables(existing: str, page: str) -> str:
    """Return the existing page with the new page's tables, or the new page if either has no marked tables."""
    parts = []
    for text in (existing, page):
        before, begin, rest = text.partition(TABLES_BEGIN)
        tables, end, after = rest.partition(TABLES_END)
        if not (begin and end):
            return page
        parts.append((before, tables, after))
    (before, _, after), (_, tables, _) = parts
    return f"{before}{TABLES_BEGIN}{tables}{TABLES_END}{after}"
