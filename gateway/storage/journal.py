"""An append-only journal on disk: records wait in it while Postgres is away.

Its lines are numbered segments, `00000001.jsonl` and up; a segment that was replayed is removed whole. A crash can tear
the last line of a segment, never more, because each run and each failed write begin a new one. Blocking: callers on an
event loop use a thread.
"""

import fcntl
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from gateway.errors import JournalInUse

_REFUSED = "refused.jsonl"
_MAX_REFUSED_BYTES = 16 * 2**20


class Segment(msgspec.Struct):
    """One file of the journal."""

    path: Path
    size_bytes: int


class Journal:
    """Lines in `directory` (0700), at most `max_bytes` of them; one process at a time."""

    def __init__(self, directory: Path, *, max_bytes: int = 256 * 2**20, segment_bytes: int = 2**20) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self.directory = directory
        self.max_bytes = max_bytes
        self.segment_bytes = segment_bytes
        self._lock_fd = _lock(directory)
        found = sorted(directory.glob("[0-9]*.jsonl"), key=lambda path: int(path.stem))
        self._segments = deque(Segment(path, path.stat().st_size) for path in found)
        self._next_number = int(found[-1].stem) + 1 if found else 1
        self._open: IO[bytes] | None = None

    @property
    def size_bytes(self) -> int:
        """What the lines that wait take on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, lines: Sequence[bytes]) -> int:
        """Add lines, on disk when this returns; stop at the first that does not fit.

        Returns:
            How many lines were added.

        Raises:
            OSError: The disk does not take them. Some may have been added.
        """
        room = self.max_bytes - self.size_bytes
        fitting = bytearray()
        for count, line in enumerate(lines):
            if len(fitting) + len(line) + 1 > room:
                self._append(fitting)
                return count
            fitting += line + b"\n"
        self._append(fitting)
        return len(lines)

    def oldest(self) -> Segment | None:
        """Give the segment to replay next; what is appended from now on goes to a later one."""
        if len(self._segments) == 1:
            self._seal()
        return self._segments[0] if self._segments else None

    def read(self, segment: Segment) -> list[bytes]:
        """Give a segment's lines."""
        return segment.path.read_bytes().splitlines()

    def remove(self, segment: Segment) -> None:
        """Forget the oldest segment: all of it was replayed."""
        segment.path.unlink()
        self.leave(segment)

    def leave(self, segment: Segment) -> None:
        """Leave a segment to the next run: it cannot be read or removed now."""
        self._segments.remove(segment)

    def set_aside(self, line: bytes) -> None:
        """Keep a line that can never be replayed in `refused.jsonl`, for a person to see, while that is small."""
        path = self.directory / _REFUSED
        with open(path, "ab", opener=_private) as file:
            if file.tell() + len(line) < _MAX_REFUSED_BYTES:
                file.write(line + b"\n")

    def close(self) -> None:
        """Close the files and let another process have the journal."""
        self._seal()
        os.close(self._lock_fd)

    def _append(self, lines: bytes | bytearray) -> None:
        if not lines:
            return
        if self._open is None or self._segments[-1].size_bytes >= self.segment_bytes:
            self._begin_segment()
        assert self._open is not None
        try:
            self._open.write(lines)
            os.fsync(self._open.fileno())
        except OSError:
            self._seal()
            raise
        finally:
            self._segments[-1].size_bytes = self._segments[-1].path.stat().st_size

    def _begin_segment(self) -> None:
        self._seal()
        path = self.directory / f"{self._next_number:08}.jsonl"
        self._open = open(path, "xb", buffering=0, opener=_private)  # noqa: SIM115  open for as long as it is filled
        self._next_number += 1
        self._segments.append(Segment(path, 0))

    def _seal(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _lock(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise JournalInUse(f"another process keeps its journal in {directory}") from error
    return fd
