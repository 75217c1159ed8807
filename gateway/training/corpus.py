"""Files of past requests as one stream in the order of their times, in memory that does not grow with the files.

All is read through once before anybody acts on it, so that a bad last line costs nothing. Rows that are not in order
are sorted on disk: sorted runs, each as large as memory allows, are merged. Files without times are taken as having
happened side by side: read one after the other, the newest requests would all be of the last one.
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
"""Encoded rows that are sorted in memory at once."""

UNIX_START_S, UNIX_END_S = 1e9, 1e10
"""The years 2001 and 2286: times before and after count from something else than 1970, or in something else."""

OnBytes = Callable[[int], None]
TimedRow = tuple[float, PastRow]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files whose every line was read and found good.

    Attributes:
        counts: rows in each file.
        in_order: whether the rows' times never go back as the files stand.
        without_times: whether no row has one.
        first_t: least of the rows' times; None where a row has none.
        last_t: greatest of them.
        text_chars: of all prompts, as far as predictions read them.
        days: numbers of the days since 1970 that they are on, where they are seconds since then.
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
        """Yield all rows in the order of their times; a row without one stays behind the row that it follows.

        Where no row has one, the files' rows alternate, each file's spread over the whole.

        Raises:
            RowError: a file is no longer what it was.
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
        """Tell whether all times look like seconds since 1970: past ones, of this century."""
        return (
            self.first_t is not None
            and self.last_t is not None
            and UNIX_START_S <= self.first_t <= self.last_t <= now_s
        )


def survey(
    paths: Sequence[Path], on_bytes: OnBytes | None = None, instructions: Instructions = NO_INSTRUCTIONS
) -> Corpus:
    """Read the files through; `instructions` are for the rows without a system prompt.

    Raises:
        RowError: a file cannot be read twice, has no rows, or a line in it is wrong.
    """
    for path in paths:
        if path.exists() and not path.is_file():
            raise RowError(f"{path}: not a regular file, which is read twice")
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
    """Yield the rows with their file's number and their times, or those of the rows before them."""
    t = -inf
    for file, path in enumerate(paths):
        for row in read_rows(path, on_bytes):
            t = t if row.t is None else row.t
            yield file, (t, row)


def _timed(paths: Sequence[Path], on_bytes: OnBytes | None) -> Iterator[TimedRow]:
    return (timed for _, timed in _numbered(paths, on_bytes))


def _spread(path: Path, count: int, on_bytes: OnBytes | None) -> Iterator[TimedRow]:
    """Yield a file's rows at even times between 0 and 1."""
    return (((number + 0.5) / count, row) for number, row in enumerate(read_rows(path, on_bytes)))


def _time(timed: TimedRow) -> float:
    return timed[0]


def _sorted(timed: Iterable[TimedRow]) -> Iterator[TimedRow]:
    """Sort on disk, stably: of equal times the one that was read first comes first."""
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
    file = tempfile.TemporaryFile(prefix="magnus-sort-")  # noqa: SIM115  closed by whoever merges it
    file.writelines(b"%s\t%s\n" % (repr(t).encode(), row) for t, row in run)
    file.seek(0)
    return file


def _replayed(run: IO[bytes]) -> Iterator[TimedRow]:
    decode = msgspec.json.Decoder(PastRow).decode
    for line in run:
        t, _, row = line.partition(b"\t")
        yield float(t), decode(row)
