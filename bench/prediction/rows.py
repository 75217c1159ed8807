"""Rows for the benchmarks: files of past requests, traces of lengths, and the text output that all of them share."""

import csv
import gzip
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import typer

from backends.simulator.workload import WorkloadRow
from gateway.cli.options import print_json
from gateway.prediction.evaluation import PastRequest
from gateway.prediction.prediction_input import PredictionInput


class BenchRow(WorkloadRow, kw_only=True):
    """A workload row with what only a split or an instruction needs."""

    group: str | None = None
    task: str = ""


def read_rows(paths: Iterable[Path], instructions: Path | None = None) -> list[PastRequest]:
    """Read JSON lines; with a file of instructions by app and task, these become the system prompts."""
    prompts = json.loads(instructions.read_text()) if instructions else {}
    decoder = msgspec.json.Decoder(BenchRow)
    rows = []
    for path in paths:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            rows += [_past(row, prompts) for row in map(decoder.decode, file) if row.output_tokens is not None]
    return rows


def read_trace(path: Path, *, output: str = "output_tokens", with_size: bool = False) -> Iterator[PastRequest]:
    """Read a trace of arrivals and lengths; the prompts' sizes only where asked for, as bytes that a gateway sees."""
    with gzip.open(path, "rt") as file:
        for row in csv.DictReader(file):
            ask = PredictionInput(app=row["app"], model="", user=row.get("user"))
            if with_size:
                ask = replace(ask, text_bytes=4 * int(row["input_tokens"]))
            yield PastRequest(ask, int(float(row[output])), t=float(row["arrival_s"]))


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


def _past(row: BenchRow, prompts: dict[str, dict[str, str]]) -> PastRequest:
    row.system = row.system or _instruction(prompts.get(row.app or "", {}), row.task)
    return PastRequest(
        PredictionInput.of_row(row), row.output_tokens or 0, input_tokens=row.input_tokens, t=row.t, group=row.group
    )


def _instruction(prompts: dict[str, str], task: str) -> str | None:
    """Return the instruction of a task: its own, else the default with the task's languages filled in."""
    for pattern, prompt in prompts.items():
        if pattern.endswith("*") and task.startswith(pattern[:-1]):
            return prompt
    if "default" not in prompts:
        return None
    source, _, target = re.sub("->|-", "\n", task, count=1).partition("\n")
    return prompts["default"].replace("{src}", source).replace("{dst}", target)
