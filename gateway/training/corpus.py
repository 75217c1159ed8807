"""Files of past requests as one stream in time order, in memory that does not grow with the files.

All files are read once and checked before they are used, so a wrong last line has no effects. Rows that are not in time
order are sorted on disk: sorted runs, each as large as memory allows, are merged. Files without times count as recorded
at the same time and are interleaved; otherwise the newest requests would all come from the last file.
"""

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import IO

import msgspec

from gateway.errors import RowError
from gateway.prediction.prediction_input import MAX_TEXT_CHARS
from gateway.training.instructions import NO_INSTRUCTIONS, Instructions
from gateway.training.rows import PastRow, read_rows

RUN_BYTES = 64 * 2**20
"""Bytes of encoded rows that are sorted in memory at once."""

UNIX_START_S, UNIX_END_S = 1e9, 1e10
"""The years 2001 and 2286. Times outside of them are not seconds since 1970."""

OnBytes = Callable[[int], None]
TimedRow = tuple[float, PastRow]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files in which every line was checked.

    Attributes:
        counts: rows in each file.
        in_order: whether the rows are in time order.
        without_times: whether no row has a time.
        first_t: smallest time; None if a row has no time.
        last_t: largest time; None if a row has no time.
        text_chars: characters of all prompts that predictions read.
        days: days of the rows, as numbers since 1970, if their times are seconds since 1970.
        instructions: system prompts of rows that have none.
    """

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    in_order: bool
    without_times: bool
    first_t: float | None
    last_t: float | None
    text_chars: int
    days: frozenset[int]
    instructions: Instructions = NO_INSTRUCTIONS

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(self.counts)

    def read(self, on_bytes: OnBytes | None = None) -> Iterator[PastRow]:
        """Yield all rows in time order; a row without a time keeps its place after the row before it.

        If no row has a time, the files are interleaved, each spread evenly over the whole.

        Raises:
            RowError: a file has changed since it was checked.
        """
        if self.without_times:
            files = zip(self.paths, self.counts, strict=True)
            timed: Iterator[TimedRow] = heapq.merge(
                *(_spread(path, count, on_bytes) for path, count in files), key=_time
            )
        else:
            timed = _timed(self.paths, on_bytes)
            timed = timed if self.in_order else _sorted(timed)
        return self.instructions.apply(row for _, row in timed)

    def is_unix_time(self, now_s: float) -> bool:
        """Return whether all times can be seconds since 1970: in this century and not in the future."""
        return (
            self.first_t is not None
            and self.last_t is not None
            and UNIX_START_S <= self.first_t <= self.last_t <= now_s
        )


def survey(
    paths: Sequence[Path], on_bytes: OnBytes | None = None, instructions: Instructions = NO_INSTRUCTIONS
) -> Corpus:
    """Read and check all files; `instructions` are for rows without a system prompt.

    Raises:
        RowError: a file cannot be read twice, has no rows, or has a wrong line.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise RowError(f"{path}: not a regular file; a file is read twice")
    untimed, text_chars, in_order = 0, 0, True
    first, last = inf, -inf
    counts, days = [0] * len(paths), set()
    for file, (t, row) in _numbered(paths, on_bytes):
        counts[file] += 1
        untimed += row.t is None
        text_chars += min(len(row.text or ""), MAX_TEXT_CHARS)
        in_order = in_order and t >= last
        first, last = min(first, t), max(last, t)
        if UNIX_START_S <= t <= UNIX_END_S:
            days.add(int(t // 86_400))
    return Corpus(
        paths=tuple(paths),
        counts=tuple(counts),
        in_order=in_order,
        without_times=untimed == sum(counts),
        first_t=None if untimed else first,
        last_t=None if untimed else last,
        text_chars=text_chars,
        days=frozenset(days),
        instructions=instructions,
    )


def _numbered(paths: Sequence[Path], on_bytes: OnBytes | None) -> Iterator[tuple[int, TimedRow]]:
    """Yield the rows with the number of their file and their time; without one, the time of the row before."""
    t = -inf
    for file, path in enumerate(paths):
        for row in read_rows(path, on_bytes):
            t = t if row.t is None else row.t
            yield file, (t, row)


def _timed(paths: Sequence[Path], on_bytes: OnBytes | None) -> Iterator[TimedRow]:
    return (timed for _, timed in _numbered(paths, on_bytes))


def _spread(path: Path, count: int, on_bytes: OnBytes | None) -> Iterator[TimedRow]:
    """Yield the rows of a file at evenly spread times between 0 and 1."""
    return (((number + 0.5) / count, row) for number, row in enumerate(read_rows(path, on_bytes)))


def _time(timed: TimedRow) -> float:
    return timed[0]


def _sorted(timed: Iterable[TimedRow]) -> Iterator[TimedRow]:
    """Sort on disk; rows with equal times keep their order."""
    with ExitStack() as stack:
        runs = [_replayed(stack.enter_context(run)) for run in _runs(timed)]
        yield from heapq.merge(*runs, key=_time)


def _runs(timed: Iterable[TimedRow]) -> Iterator[IO[bytes]]:
    run: list[tuple[float, bytes]] = []
    size = 0
    for t, row in timed:
        run.append((t, msgspec.json.encode(row)))
        size += len(run[-1][1])
        if size > RUN_BYTES:
            yield _written(run)
            run, size = [], 0
    if run:
        yield _written(run)


def _written(run: list[tuple[float, bytes]]) -> IO[bytes]:
    run.sort(key=lambda timed_row: timed_row[0])
    file = tempfile.TemporaryFile(prefix="magnus-sort-")  # noqa: SIM115 - the merge closes it
    file.writelines(b"%s\t%s\n" % (repr(t).encode(), row) for t, row in run)
    file.seek(0)
    return file


def _replayed(run: IO[bytes]) -> Iterator[TimedRow]:
    decode = msgspec.json.Decoder(PastRow).decode
    for line in run:
        t, _, row = line.partition(b"\t")
        yield float(t), decode(row)
