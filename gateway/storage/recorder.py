"""Writes finished requests to Postgres, each exactly once, outside the request path.

A record is appended to a queue in memory, and one task writes batches. While Postgres is unreachable, batches go to the
journal. When Postgres is back, at the latest in the gateway's next run, they are written from there, oldest first. Each
step may be repeated, because inserting a record twice changes nothing. So a record leaves the queue, and a segment the
journal, only after the next step has succeeded.

One record that Postgres does not accept must not hold up the others. If a write fails while an ordinary record would be
accepted, the batch is split until the bad record is alone. That record goes to `refused.jsonl`. If not even an ordinary
record is accepted, Postgres counts as unreachable, and every record is kept.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec

from gateway.errors import DatabaseUnavailable, RecordsRefused, StorageError
from gateway.storage.journal import Journal, Segment
from gateway.storage.record import RequestRecord
from gateway.storage.repository import Repository

_log = logging.getLogger(__name__)

SUSPECT_AFTER_FAILURES = 3
"""After so many failed replays of a segment, while Postgres accepts records, its records are written one by one."""

MAX_SEGMENT_FAILURES = 6
"""After so many failed replays, while Postgres accepts records, a segment is set aside."""


class Recorder:
    """Writes records in the background and counts them.

    Attributes:
        written: rows inserted directly.
        journaled: records written to the journal.
        replayed: rows inserted from the journal.
        dropped: records lost because the queue or the journal was full, or the disk failed.
        refused: records that Postgres does not accept; they are in `refused.jsonl` in the journal's directory.
        set_aside: segments of the journal whose replay failed again and again; they are renamed to `*.failed`.
        left_segments: segments of the journal that could not be read or deleted; the next run tries again.
        last_error: why the last record was refused or the last write failed; None if there was no error.
    """

    def __init__(
        self,
        repository: Repository,
        journal: Journal,
        *,
        interval_s: float = 0.2,
        retry_s: float = 1.0,
        batch_size: int = 500,
        max_pending: int = 50_000,
    ) -> None:
        self.written = self.journaled = self.replayed = self.dropped = 0
        self.refused = self.set_aside = self.left_segments = 0
        self.last_error: str | None = None
        self._repository = repository
        self._journal = journal
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._batch_size = batch_size
        self._max_pending = max_pending
        self._queue: deque[RequestRecord] = deque()
        self._storing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._retry_at: float | None = None
        self._outage_certain = False
        self._failing: tuple[Segment | None, int] = (None, 0)
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Number of records in memory that are neither in Postgres nor in the journal."""
        return len(self._queue)

    @property
    def database_available(self) -> bool:
        """Whether the last write reached Postgres."""
        return self._retry_at is None

    def counts(self) -> dict[str, int]:
        """Return the counters and the number of pending records, by name."""
        names = ("pending", "written", "journaled", "replayed", "dropped", "refused", "set_aside")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict[str, Any]:
        """Return the counts and the last error."""
        return {**self.counts(), "last_error": self.last_error}

    def record(self, record: RequestRecord) -> None:
        """Queue a record. Call it on the event loop. It never blocks and never raises."""
        if self._closing or len(self._queue) >= self._max_pending:
            self.dropped += 1
            return
        self._queue.append(record)
        if len(self._queue) >= self._batch_size:
            self._wake.set()

    def start(self) -> None:
        """Start the task, which first replays the journal of an earlier run."""
        self._task = asyncio.create_task(self._run(), name="recorder")
        self._task.add_done_callback(_report_failure)

    async def flush(self) -> None:
        """Wait until all records so far are in Postgres or, while it is unreachable, in the journal."""
        async with self._storing:
            await self._drain()

    @asynccontextmanager
    async def paused(self) -> AsyncGenerator[None]:
        """Write nothing until the block ends. New records are queued."""
        async with self._storing:
            yield

    async def erase(self, matches: Callable[[RequestRecord], bool], matches_line: Callable[[bytes], bool]) -> int:
        """Delete the matching records from the queue and from the journal's files. Call it while paused.

        Returns:
            The number of deleted records.
        """
        kept = [record for record in self._queue if not matches(record)]
        erased = len(self._queue) - len(kept)
        self._queue = deque(kept)
        return erased + await asyncio.to_thread(self._journal.erase, matches_line)

    async def aclose(self) -> None:
        """Stop accepting records, store the queued records, and close the journal."""
        self._closing = True
        self._wake.set()
        try:
            if self._task is not None:
                await self._task
        finally:
            await self.flush()
            self._journal.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self) -> None:
        while not self._closing:
            async with self._storing:
                await self._drain()
                await self._replay()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._interval_s)
            self._wake.clear()

    async def _drain(self) -> None:
        """Store the queued records. A record leaves the queue when it is stored, so a cancelled drain loses none."""
        remaining = len(self._queue)
        while remaining > 0:
            batch = list(islice(self._queue, min(remaining, self._batch_size)))
            await self._store(batch)
            remaining -= len(batch)
            for _ in batch:
                self._queue.popleft()

    async def _store(self, batch: Sequence[RequestRecord]) -> None:
        written, left = await self._write(batch) if self._may_try() else (0, batch)
        self.written += written
        await self._append_to_journal(left)

    async def _replay(self) -> None:
        """Write the journal's oldest segment. One per cycle, so that new records do not wait for a long journal."""
        segment = self._journal.oldest()
        if segment is None or not self._may_try():
            return
        try:
            if await self._replay_segment(segment):
                await asyncio.to_thread(self._journal.remove, segment)
                self._wake.set()
            elif not self._outage_certain and await self._accepts_records():
                await self._count_failure(segment)
        except OSError as error:
            _log.error(
                "The journal segment %s cannot be read or deleted; the next run tries again: %s", segment.path, error
            )
            self.left_segments += 1
            self._journal.skip(segment)

    async def _count_failure(self, segment: Segment) -> None:
        """Note that a segment was not written although Postgres accepts records; set it aside after the last try."""
        failures = self._failures_of(segment) + 1
        self._failing = segment, failures
        if failures >= MAX_SEGMENT_FAILURES:
            path = await asyncio.to_thread(self._journal.set_aside, segment)
            self.set_aside += 1
            _log.error(
                "The journal segment %s could not be written %d times and is set aside: %s",
                path,
                failures,
                self.last_error,
            )

    def _failures_of(self, segment: Segment) -> int:
        failing, failures = self._failing
        return failures if failing is segment else 0

    async def _replay_segment(self, segment: Segment) -> bool:
        """Write the records of a segment. Return False if some are left because Postgres is unreachable."""
        records = await self._decode(await asyncio.to_thread(self._journal.read, segment))
        suspect = self._failures_of(segment) >= SUSPECT_AFTER_FAILURES
        for start in range(0, len(records), self._batch_size):
            written, left = await self._write(records[start : start + self._batch_size], suspect=suspect)
            self.replayed += written
            if left:
                return False
        return True

    async def _write(self, batch: Sequence[RequestRecord], *, suspect: bool = False) -> tuple[int, list[RequestRecord]]:
        """Write a batch. If Postgres refuses it but accepts others, split it in halves until the bad record is alone.

        Args:
            batch: the records.
            suspect: treat a lost connection as the fault of a record, if Postgres accepts an ordinary one.

        Returns:
            The number of new rows, and the records that are left because Postgres is unreachable.
        """
        parts, written, accepts = [batch], 0, False
        while parts:
            part = parts.pop()
            try:
                written += await self._repository.write(part)
            except (RecordsRefused, DatabaseUnavailable) as error:
                refused = isinstance(error, RecordsRefused)
                blames_record = refused or (suspect and not error.certain)
                accepts = (accepts and refused) or (blames_record and await self._accepts_records())
                if not accepts:
                    self._mark_unavailable(error)
                    return written, [record for left in (part, *reversed(parts)) for record in left]
                if len(part) == 1:
                    await self._refuse(_refused_line(part[0], error), error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            else:
                accepts = True
                self._mark_available()
        return written, []

    async def _accepts_records(self) -> bool:
        """Return whether Postgres accepts an ordinary record now."""
        try:
            await self._repository.probe()
        except DatabaseUnavailable:
            return False
        return True

    async def _append_to_journal(self, batch: Sequence[RequestRecord]) -> None:
        if not batch:
            return
        lines = []
        for record in batch:
            try:
                lines.append(msgspec.json.encode(record))
            except ValueError as error:  # one half of a surrogate pair has no encoding
                await self._refuse(_refused_line(record, error), error)
        try:
            appended = await asyncio.to_thread(self._journal.append, lines)
        except OSError as error:
            _log.error("The journal cannot be written: %s", error)
            appended = 0
        self.journaled += appended
        self.dropped += len(lines) - appended

    async def _decode(self, lines: Sequence[bytes]) -> list[RequestRecord]:
        records = []
        for line in lines:
            try:
                records.append(msgspec.json.decode(line, type=RequestRecord))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:  # damaged by a crash
                await self._refuse(_damaged_line(line, error), error)
        return records

    async def _refuse(self, line: bytes, reason: Exception) -> None:
        self.refused += 1
        self.last_error = str(reason)
        _log.warning("Postgres refused a request record, which goes to refused.jsonl: %s", reason)
        try:
            await asyncio.to_thread(self._journal.append_refused, line)
        except OSError as error:
            _log.error("A refused request record is lost, because refused.jsonl cannot be written: %s", error)

    def _may_try(self) -> bool:
        return self._retry_at is None or asyncio.get_running_loop().time() >= self._retry_at

    def _mark_unavailable(self, error: StorageError) -> None:
        self.last_error = str(error)
        self._outage_certain = error.certain
        if self._retry_at is None:
            _log.warning(
                "Postgres is unreachable; requests are written to the journal in %s: %s", self._journal.directory, error
            )
        self._retry_at = asyncio.get_running_loop().time() + self._retry_s

    def _mark_available(self) -> None:
        if self._retry_at is not None:
            _log.warning("Postgres is reachable again")
        self._retry_at = None


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.critical("The recorder task failed; restart the gateway", exc_info=error)


def _refused_line(record: RequestRecord, error: Exception) -> bytes:
    """Return the line of a refused record: the error and the record, as JSON."""
    try:
        return msgspec.json.encode({"error": str(error), "record": record})
    except ValueError:  # the record has no encoding
        return _damaged_line(repr(record).encode(errors="backslashreplace"), error)


def _damaged_line(line: bytes, error: Exception) -> bytes:
    """Return the line of a record that cannot be decoded: the error and the text, as JSON."""
    text = line.decode(errors="backslashreplace")
    return msgspec.json.encode({"error": str(error).encode(errors="replace").decode(), "line": text})
