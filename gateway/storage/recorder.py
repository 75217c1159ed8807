"""Writes finished requests to Postgres, each exactly once, outside the request path.

A record is appended to a queue in memory, and one task writes batches. While Postgres is unreachable, batches go to the
journal. When Postgres is back, at the latest in the gateway's next run, they are written from there, oldest first. Each
step may be repeated, because inserting a record twice changes nothing. So a record leaves the queue, and a segment the
journal, only after the next step has succeeded.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Self

import msgspec

from gateway.errors import DatabaseUnavailable, RecordsRefused
from gateway.storage.journal import Journal, Segment
from gateway.storage.record import RequestRecord
from gateway.storage.repository import Repository

_log = logging.getLogger(__name__)


class Recorder:
    """Writes records in the background and counts them.

    Attributes:
        written: rows inserted directly.
        journaled: records written to the journal.
        replayed: rows inserted from the journal.
        dropped: records lost because the queue or the journal was full, or the disk failed.
        refused: records that Postgres will never accept; they are in `refused.jsonl` in the journal's directory.
        left_segments: segments of the journal that could not be read or deleted; the next run tries again.
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
        self.written = self.journaled = self.replayed = self.dropped = self.refused = self.left_segments = 0
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
        names = ("pending", "written", "journaled", "replayed", "dropped", "refused")
        return {name: getattr(self, name) for name in names}

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

    async def flush(self) -> None:
        """Wait until all records so far are in Postgres or, while it is unreachable, in the journal."""
        async with self._storing:
            await self._drain()

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
        except OSError as error:
            _log.error(
                "The journal segment %s cannot be read or deleted; the next run tries again: %s", segment.path, error
            )
            self.left_segments += 1
            self._journal.skip(segment)

    async def _replay_segment(self, segment: Segment) -> bool:
        """Write the records of a segment. Return False if some are left because Postgres is unreachable."""
        records = await self._decode(await asyncio.to_thread(self._journal.read, segment))
        for start in range(0, len(records), self._batch_size):
            written, left = await self._write(records[start : start + self._batch_size])
            self.replayed += written
            if left:
                return False
        return True

    async def _write(self, batch: Sequence[RequestRecord]) -> tuple[int, list[RequestRecord]]:
        """Write a batch. If Postgres refuses a record, split the batch in halves until that record is alone.

        Returns:
            The number of new rows, and the records that are left because Postgres is unreachable.
        """
        parts, written = [batch], 0
        while parts:
            part = parts.pop()
            try:
                written += await self._repository.write(part)
            except RecordsRefused as error:
                if len(part) == 1:
                    await self._refuse(_repr(part[0]), error)
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
            except DatabaseUnavailable as error:
                self._mark_unavailable(error)
                return written, [record for left in (part, *reversed(parts)) for record in left]
            else:
                self._mark_available()
        return written, []

    async def _append_to_journal(self, batch: Sequence[RequestRecord]) -> None:
        if not batch:
            return
        lines = []
        for record in batch:
            try:
                lines.append(msgspec.json.encode(record))
            except ValueError as error:  # one half of a surrogate pair has no encoding
                await self._refuse(_repr(record), error)
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
                await self._refuse(line, error)
        return records

    async def _refuse(self, line: bytes, reason: Exception) -> None:
        self.refused += 1
        _log.warning("Postgres refused a request record, which goes to refused.jsonl: %s", reason)
        try:
            await asyncio.to_thread(self._journal.append_refused, line)
        except OSError as error:
            _log.error("A refused request record is lost, because refused.jsonl cannot be written: %s", error)

    def _may_try(self) -> bool:
        return self._retry_at is None or asyncio.get_running_loop().time() >= self._retry_at

    def _mark_unavailable(self, error: DatabaseUnavailable) -> None:
        if self._retry_at is None:
            _log.warning(
                "Postgres is unreachable; requests are written to the journal in %s: %s", self._journal.directory, error
            )
        self._retry_at = asyncio.get_running_loop().time() + self._retry_s

    def _mark_available(self) -> None:
        if self._retry_at is not None:
            _log.warning("Postgres is reachable again")
        self._retry_at = None


def _repr(record: RequestRecord) -> bytes:
    """Return a record that has no encoding as one readable line."""
    return repr(record).encode(errors="backslashreplace")
