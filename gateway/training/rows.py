"""Past requests from files: JSON lines or CSV traces, plain or .gz, read one line at a time and checked in full.

A row is as in the simulator's workloads, with `output_tokens` always known; what else is missing is unknown. A trace
has a header with `arrival_s` in the place of `t`; columns that nobody reads are passed over.
"""

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from backends.simulator.workload import WorkloadRow
from gateway.errors import RowError

MAX_LINE_BYTES = 32 * 2**20
"""As long as the longest request body: what is longer is no row, and is not read into memory to see."""

MAX_NAME_CHARS = 512
"""No index takes much longer ones."""

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class PastRow(WorkloadRow, kw_only=True):
    """A request and what came of it. Rows of one `group` share an input; `task` is the application's own."""

    output_tokens: Tokens
    input_tokens: Tokens | None = None
    task: str | None = None
    group: str | None = None


_NAMES = ("app", "user", "model", "task", "group")
_TRACE_COLUMNS = {"arrival_s": "t", "input_tokens": "input_tokens", "output_tokens": "output_tokens"} | {
    name: name for name in _NAMES
}
_AT = re.compile(r" - at `(?:key in )?\$\.?(?P<field>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


def read_rows(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[PastRow]:
    """Yield a file's rows.

    Args:
        path: `.csv` or `.csv.gz` is a trace, all else JSON lines.
        on_bytes: told now and then how many bytes more were read from the disk.

    Raises:
        RowError: the file cannot be read, has no rows, or a line is wrong.
    """
    parse = _parse_trace if ".csv" in path.suffixes[-2:] else _parse_json
    empty = True
    lines = _Lines(on_bytes or (lambda _: None))
    try:
        for row in parse(lines.of(path)):
            _check(row)
            empty = False
            yield row
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, csv.Error, _BadLine) as error:
        raise RowError(f"{path}:{max(1, lines.number)}: {_told(error)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RowError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if empty:
        raise RowError(f"{path}: no rows in it")


class _BadLine(ValueError):
    pass


class _Lines:
    """A file's lines; memory is one line's, whatever the file's size. `number` is that of the line given last."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self.number = 0
        self._on_bytes = on_bytes
        self._reported = 0

    def of(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                self.number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise _BadLine(f"a line of more than {MAX_LINE_BYTES >> 20} MiB is no row")
                yield line.removeprefix(codecs.BOM_UTF8) if self.number == 1 else line
                if self.number % 1000 == 0:
                    self._report(raw.tell())
            self._report(raw.tell())

    def _report(self, position: int) -> None:
        self._on_bytes(position - self._reported)
        self._reported = position


def _parse_json(lines: Iterable[bytes]) -> Iterator[PastRow]:
    decode = msgspec.json.Decoder(PastRow).decode
    return (decode(line) for line in lines if not line.isspace())


def _parse_trace(lines: Iterable[bytes]) -> Iterator[PastRow]:
    rows = csv.reader(line.decode() for line in lines)
    header = [name.strip() for name in next(rows, [])]
    if "output_tokens" not in header:
        raise _BadLine("output_tokens: no such column in the header")
    return (_trace_row(header, values) for values in rows if values)


def _trace_row(header: list[str], values: list[str]) -> PastRow:
    if len(values) != len(header):
        raise _BadLine(f"{len(values)} values under a header of {len(header)} columns")
    known: dict[str, Any] = {
        _TRACE_COLUMNS[name]: value.strip()
        for name, value in zip(header, values, strict=True)
        if name in _TRACE_COLUMNS and value.strip()
    }
    # Text that reads as a number is one, but a user that is called so is still a name.
    return msgspec.convert(known, PastRow, strict=False)


def _check(row: PastRow) -> None:
    """Check what no type says."""
    if row.t is not None and not isfinite(row.t):
        raise _BadLine("t: a finite number expected")
    for name in _NAMES:
        value = getattr(row, name) or ""
        if "\0" in value:
            raise _BadLine(f"{name}: a NUL character, which no name has")
        if len(value) > MAX_NAME_CHARS:
            raise _BadLine(f"{name}: longer than {MAX_NAME_CHARS} characters")


def _told(error: Exception) -> str:
    """Say what is wrong with the field first, as in `output_tokens: Expected int >= 0`."""
    text = " ".join(str(error).split())
    if match := _MISSING.match(text):
        return f"{match['field']}: missing"
    what = _AT.sub("", text).replace("`", "")
    match = _AT.search(text)
    return f"{match['field']}: {what}" if match and match["field"] else what
