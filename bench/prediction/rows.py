"""Past requests for the benchmarks, and the tables that they print."""

import csv
import gzip
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from gateway.cli.options import print_json
from gateway.prediction.evaluation import PastRequest
from gateway.prediction.prediction_input import PredictionInput
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions
from gateway.training.rows import PastRow
from gateway.training.rows import read_rows as read_file


def read_rows(paths: Iterable[Path], instructions: Path | None = None) -> list[PastRequest]:
    """Read files of past requests; `instructions` gives the system prompts by application and task."""
    texts = Instructions.load(instructions) if instructions else NO_INSTRUCTIONS
    return [_past(row) for path in paths for row in texts.apply(read_file(path))]


def read_trace(path: Path, *, output: str = "output_tokens", with_size: bool = False) -> Iterator[PastRequest]:
    """Read a trace of arrivals and lengths; `with_size` gives the sizes of the prompts in bytes."""
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            one = PredictionInput(app=row["app"], model="", user=row.get("user"))
            if with_size:
                one = replace(one, text_bytes=4 * int(row["input_tokens"]))
            yield PastRequest(one, int(float(row[output])), t=float(row["arrival_s"]))


def print_table(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Print rows of one table, aligned, or as one JSON object with the rows."""
    if as_json:
        print_json({"rows": rows})
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    table = [list(rows[0]), *cells]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 10
        else (f"{value:.1f}" if isinstance(value, float) else str(value))
    )


def _past(row: PastRow) -> PastRequest:
    return PastRequest(
        row.prediction_input(), row.output_tokens, input_tokens=row.input_tokens, t=row.t, group=row.group
    )
