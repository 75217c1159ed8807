"""Takes finished requests off the request path and brings each of them into Postgres once.

A record is appended to a queue in memory; one task writes batches. While Postgres is away the batches go to the
journal, and from there, oldest first, to Postgres once it is back, at the latest in the gateway's next run. Every step
may happen twice, because inserting a record again changes nothing; hence a record leaves the queue, and a segment the
journal, only after the step that follows has succeeded.
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
    """Writes records in the background; its counters say what became of them.

    Attributes:
        written: Rows that were inserted without a detour.
        journaled: Records that went to the journal.
        replayed: Rows that came from the journal.
        dropped: Records that are lost, because the queue or the journal was full or the disk failed.
        refused: Records that Postgres never takes; set aside in the journal's directory.
        left_segments: Segments of the journal that the disk does not give; the next run tries again.
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
        """Records in memory that are neither in Postgres nor in the journal."""
        return len(self._queue)

    @property
    def database_available(self) -> bool:
        """Whether the last write reached Postgres."""
        return self._retry_at is None

    def counts(self) -> dict[str, int]:
        """Count the records since the start by what became of them."""
        names = ("pending", "written", "journaled", "replayed", "dropped", "refused")
        return {name: getattr(self, name) for name in names}

    def record(self, record: RequestRecord) -> None:
        """Take a record. Never blocks, never raises; called on the event loop."""
        if self._closing or len(self._queue) >= self._max_pending:
            self.dropped += 1
            return
        self._queue.append(record)
        if len(self._queue) >= self._batch_size:
            self._wake.set()

    def start(self) -> None:
        """Begin to write, first of all what an earlier run left in the journal."""
        self._task = asyncio.create_task(self._run(), name="recorder")

    async def flush(self) -> None:
        """Wait until all that was recorded so far is in Postgres or, while that is away, in the journal."""
        async with self._storing:
            await self._drain()

    async def aclose(self) -> None:
        """Take no more records, bring those taken to safety, and close the journal."""
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
        """Store what is in the queue now. A record leaves it when it is stored, so a cancelled drain loses nothing."""
        remaining = len(self._queue)
        while remaining > 0:
            batch = list(islice(self._queue, min(remaining, self._batch_size)))
            await self._store(batch)
            remaining -= len(batch)
            for _ in batch:
                self._queue.popleft()

    async def _store(self, batch: Sequence[RequestRecord]) -> None:
        written, left = await self._write(batch) if self._worth_trying() else (0, batch)
        self.written += written
        await self._append_to_journal(left)

    async def _replay(self) -> None:
        """Write the journal's oldest segment; one at a time, so that new records do not wait for a long journal."""
        segment = self._journal.oldest()
        if segment is None or not self._worth_trying():
            return
        try:
            if await self._replay_segment(segment):
                await asyncio.to_thread(self._journal.remove, segment)
                self._wake.set()
        except OSError as error:
            _log.error("%s waits for the next run: %s", segment.path, error)
            self.left_segments += 1
            self._journal.leave(segment)

    async def _replay_segment(self, segment: Segment) -> bool:
        """Write a segment's records. Returns whether none is left because Postgres is away."""
        records = await self._decode(await asyncio.to_thread(self._journal.read, segment))
        for start in range(0, len(records), self._batch_size):
            written, left = await self._write(records[start : start + self._batch_size])
            self.replayed += written
            if left:
                return False
        return True

    async def _write(self, batch: Sequence[RequestRecord]) -> tuple[int, list[RequestRecord]]:
        """Write a batch, in halves where a record in it is refused, until that one is alone.

        Returns:
            How many rows were new, and the records that are left because Postgres is away.
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
                self._note_unavailable(error)
                return written, [record for left in (part, *reversed(parts)) for record in left]
            else:
                self._note_available()
        return written, []

    async def _append_to_journal(self, batch: Sequence[RequestRecord]) -> None:
        if not batch:
            return
        lines = []
        for record in batch:
            try:
                lines.append(msgspec.json.encode(record))
            except ValueError as error:  # half of a surrogate pair: no encoding has it
                await self._refuse(_repr(record), error)
        try:
            appended = await asyncio.to_thread(self._journal.append, lines)
        except OSError as error:
            _log.error("The journal takes no records: %s", error)
            appended = 0
        self.journaled += appended
        self.dropped += len(lines) - appended

    async def _decode(self, lines: Sequence[bytes]) -> list[RequestRecord]:
        records = []
        for line in lines:
            try:
                records.append(msgspec.json.decode(line, type=RequestRecord))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:  # torn by a crash
                await self._refuse(line, error)
        return records

    async def _refuse(self, line: bytes, reason: Exception) -> None:
        self.refused += 1
        _log.warning("A request is not recorded but set aside: %s", reason)
        try:
            await asyncio.to_thread(self._journal.set_aside, line)
        except OSError as error:
            _log.error("It is lost, the journal's directory takes nothing: %s", error)

    def _worth_trying(self) -> bool:
        return self._retry_at is None or asyncio.get_running_loop().time() >= self._retry_at

    def _note_unavailable(self, error: DatabaseUnavailable) -> None:
        if self._retry_at is None:
            _log.warning("Postgres is away, requests are recorded in %s: %s", self._journal.directory, error)
        self._retry_at = asyncio.get_running_loop().time() + self._retry_s

    def _note_available(self) -> None:
        if self._retry_at is not None:
            _log.warning("Postgres is back")
        self._retry_at = None


def _repr(record: RequestRecord) -> bytes:
    """Give a record that may have no encoding as one line that a person can read."""
    return repr(record).encode(errors="backslashreplace")
