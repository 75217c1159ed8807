"""Workload files and truth files: JSON lines, plain or .gz.

A workload row has a prompt (`prompt`, `user_input`, or the last user message of `messages`) and, if known, its token
counts. A truth row has the prompt's SHA-1 instead, so that an engine knows each answer's length but nobody can read the
prompts from the file.
"""

import gzip
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

import msgspec


class WorkloadError(ValueError):
    """A line of a workload or truth file is wrong. The message names the file, the line and the field."""


class ContentPart(msgspec.Struct):
    """One part of a message. Only text parts count."""

    text: str | None = None


class Message(msgspec.Struct):
    """One chat message."""

    role: str
    content: str | list[ContentPart] | None = None

    @property
    def text(self) -> str:
        """The text of all parts, joined by newlines, as vLLM does."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content if part.text is not None)
        return self.content or ""


class WorkloadRow(msgspec.Struct, kw_only=True):
    """A past request. None means unknown. `t` is the arrival time in seconds."""

    app: str | None = None
    user: str | None = None
    model: str | None = None
    system: str | None = None
    t: float | None = None
    prompt: str | None = None
    user_input: str | None = None
    messages: list[Message] | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None

    @property
    def text(self) -> str | None:
        """The text that identifies the request: its prompt or its last user message."""
        if self.messages is not None:
            return last_user_text(self.messages)
        return self.user_input if self.prompt is None else self.prompt


class TruthRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The length of one answer in tokens."""

    sha: str
    input_tokens: int | None = None
    output_tokens: int


_Row = TypeVar("_Row", WorkloadRow, TruthRow)


def last_user_text(messages: Iterable[Message]) -> str:
    """Return the text of the last message whose role is 'user', or ''."""
    return next((message.text for message in reversed(list(messages)) if message.role == "user"), "")


def sha_of(text: str) -> str:
    """Return the hex SHA-1 of the text's UTF-8.

    >>> sha_of("hello")
    'aaf4c61ddcc5e8a2dabede0f3b482cd9aea9434d'
    """
    return hashlib.sha1(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def read_workload(path: Path) -> Iterator[WorkloadRow]:
    """Yield the rows of a workload file.

    Raises:
        WorkloadError: a line is not a JSON object, has no prompt, or a field has a wrong type or value.
    """
    for line, row in _read_rows(path, WorkloadRow):
        if row.text is None:
            raise WorkloadError(f"{path}:{line}: one of `prompt`, `user_input` and `messages` is required")
        _check_counts(path, line, row)
        yield row


def read_truth(path: Path) -> Iterator[TruthRow]:
    """Yield the rows of a truth file.

    Raises:
        WorkloadError: a line is not a JSON object, a field is missing, or a field has a wrong type or value.
    """
    for line, row in _read_rows(path, TruthRow):
        if len(row.sha) != 40 or not set(row.sha) <= set("0123456789abcdef"):
            raise WorkloadError(f"{path}:{line}: `sha` must be 40 lower-case hex digits")
        _check_counts(path, line, row)
        yield row


def write_truth(path: Path, rows: Iterable[WorkloadRow]) -> int:
    """Write a truth file of the rows whose output length is known. Return the number of rows written."""
    written = 0
    with _open(path, "wb") as file:
        for row in rows:
            if row.text is None or row.output_tokens is None:
                continue
            truth = TruthRow(sha=sha_of(row.text), input_tokens=row.input_tokens, output_tokens=row.output_tokens)
            file.write(msgspec.json.encode(truth) + b"\n")
            written += 1
    return written


def _open(path: Path, mode: str) -> IO[bytes]:
    return gzip.open(path, mode) if path.suffix == ".gz" else path.open(mode)  # type: ignore[return-value]


def _read_rows(path: Path, row_type: type[_Row]) -> Iterator[tuple[int, _Row]]:
    decoder = msgspec.json.Decoder(row_type)
    with _open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield number, decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise WorkloadError(f"{path}:{number}: {error}") from error


def _check_counts(path: Path, line: int, row: WorkloadRow | TruthRow) -> None:
    for field in ("input_tokens", "output_tokens"):
        count = getattr(row, field)
        if count is not None and count < 1:
            raise WorkloadError(f"{path}:{line}: `{field}` must be at least 1")
