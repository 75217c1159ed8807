"""Past requests from files: JSON lines or CSV traces, plain or .gz, read line by line and checked in full.

`output_tokens` is required; every other missing field is unknown. A trace has a header with `arrival_s` in place of
`t`. Fields and columns that are not listed here are ignored.
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

from gateway.errors import RowError
from gateway.prediction.prediction_input import UNNAMED, PredictionInput, bounded, utf8_bytes

MAX_LINE_BYTES = 32 * 2**20
"""Longest line in bytes, as long as the longest request body; a longer line is an error and is not read in full."""

MAX_NAME_CHARS = 512
"""Longest name in characters; the database's indexes do not take much longer ones."""

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class RowContentPart(msgspec.Struct):
    """One part of a message; only text counts."""

    text: str | None = None


class RowMessage(msgspec.Struct):
    """One chat message of a row."""

    role: str
    content: str | list[RowContentPart] | None = None

    @property
    def text(self) -> str:
        """The texts of all parts, one per line."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text is not None)
        return self.content or ""


class PastRow(msgspec.Struct, kw_only=True):
    """One row: a request and its token counts; None is unknown.

    Attributes:
        t: arrival in seconds.
        user_input: the prompt, in files that name it so.
        messages: the chat, in place of `system` and `prompt`.
        task: a task of the application, which chooses its instruction.
        group: rows of one group share an input.
    """

    app: str | None = None
    user: str | None = None
    model: str | None = None
    system: str | None = None
    t: float | None = None
    prompt: str | None = None
    user_input: str | None = None
    messages: list[RowMessage] | None = None
    output_tokens: Tokens
    input_tokens: Tokens | None = None
    task: str | None = None
    group: str | None = None

    @property
    def text(self) -> str | None:
        """The prompt, or the last user message."""
        if self.messages is not None:
            return next((message.text for message in reversed(self.messages) if message.role == "user"), "")
        return self.user_input if self.prompt is None else self.prompt

    def prediction_input(self) -> PredictionInput:
        """Return what a gateway sees of the request; it leaves out the token counts, which come with the answer.

        >>> one = PastRow(app="chat", user_input="How tall is Everest?", output_tokens=12).prediction_input()
        >>> one.text, one.text_bytes, one.key
        ('How tall is Everest?', 20, HistoryKey(app='chat', model='', template=None, user=None))
        """
        text, messages = self.text or "", self.messages or []
        systems = [message.text for message in messages if message.role in {"system", "developer"}]
        system = self.system or "\n".join(systems) or None
        user_bytes = utf8_bytes(text)
        whole = sum(utf8_bytes(message.text) for message in messages) if messages else user_bytes
        return PredictionInput(
            app=self.app or UNNAMED,
            model=self.model or UNNAMED,
            user=self.user,
            system=system,
            text=bounded(text),
            text_bytes=whole + (utf8_bytes(self.system) if self.system else 0),
            last_user_bytes=user_bytes,
            message_count=len(messages) if messages else 1 + (system is not None),
        )


_NAMES = ("app", "user", "model", "task", "group")
_TRACE_COLUMNS = {"arrival_s": "t", "input_tokens": "input_tokens", "output_tokens": "output_tokens"} | {
    name: name for name in _NAMES
}
_AT = re.compile(r" - at `(?:key in )?\$\.?(?P<field>[^`]*)`$")
_MISSING = re.compile(r"^Object missing required field `(?P<field>[^`]+)`$")


def read_rows(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[PastRow]:
    """Yield the rows of a file.

    Args:
        path: `.csv` and `.csv.gz` are traces, all other files JSON lines.
        on_bytes: called from time to time with the bytes read from the disk since the last call.

    Raises:
        RowError: the file cannot be read, has no rows, or has a wrong line.
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
        raise RowError(f"{path}:{max(1, lines.number)}: {_reason(error)}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RowError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if empty:
        raise RowError(f"{path}: no rows in it")


class _BadLine(ValueError):
    pass


class _Lines:
    """Reads a file's lines with one line in memory; `number` is that of the last line."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self.number = 0
        self._on_bytes = on_bytes
        self._reported = 0

    def of(self, path: Path) -> Iterator[bytes]:
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else nullcontext(raw) as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                self.number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise _BadLine(f"a line of more than {MAX_LINE_BYTES >> 20} MiB is too long")
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
    # Not strict: numbers are text in a CSV file. A user whose name is a number stays text, because the field is text.
    return msgspec.convert(known, PastRow, strict=False)


def _check(row: PastRow) -> None:
    """Check what the types do not."""
    if row.t is not None and not isfinite(row.t):
        raise _BadLine("t: a finite number expected")
    for name in _NAMES:
        value = getattr(row, name) or ""
        if "\0" in value:
            raise _BadLine(f"{name}: a NUL character is not allowed in a name")
        if len(value) > MAX_NAME_CHARS:
            raise _BadLine(f"{name}: longer than {MAX_NAME_CHARS} characters")


def _reason(error: Exception) -> str:
    """Return the error with its field first, as in `output_tokens: Expected int >= 0`."""
    text = " ".join(str(error).split())
    if match := _MISSING.match(text):
        return f"{match['field']}: missing"
    what = _AT.sub("", text).replace("`", "")
    match = _AT.search(text)
    return f"{match['field']}: {what}" if match and match["field"] else what
