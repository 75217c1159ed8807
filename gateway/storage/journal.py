"""An append-only journal on disk, which stores records while Postgres is unreachable.

The journal consists of numbered files, the segments `00000001.jsonl` and up. A replayed segment is deleted. Each run of
the gateway and each failed write start a new segment, so a crash can damage only the last line of a segment. A segment
that cannot be replayed is set aside as `00000001.failed`, and single records that Postgres refuses go to
`refused.jsonl`: both stay for the operator. All methods block: on an event loop, call them in a thread.
"""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import msgspec

from gateway.errors import JournalInUse

_REFUSED = "refused.jsonl"
_MAX_REFUSED_BYTES = 16 * 2**20

MAX_SET_ASIDE = 16
"""Most segments that are kept after they were set aside. The oldest are deleted first."""


class Segment(msgspec.Struct):
    """One file of the journal."""

    path: Path
    size_bytes: int


class Journal:
    """The journal in `directory` (mode 0700), at most `max_bytes` large. One process may use it at a time."""

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
        """Size of all segments on disk."""
        return sum(segment.size_bytes for segment in self._segments)

    def append(self, lines: Sequence[bytes]) -> int:
        """Append lines and sync them to disk. Stop at the first line that exceeds `max_bytes`.

        Returns:
            The number of lines that were appended.

        Raises:
            OSError: the disk did not accept the lines. Some of them may have been written.
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
        """Return the oldest segment, or None. Later lines are appended to another segment."""
        if len(self._segments) == 1:
            self._seal()
        return self._segments[0] if self._segments else None

    def read(self, segment: Segment) -> list[bytes]:
        """Return the lines of a segment."""
        return segment.path.read_bytes().splitlines()

    def remove(self, segment: Segment) -> None:
        """Delete a segment after its replay."""
        segment.path.unlink()
        self.skip(segment)

    def skip(self, segment: Segment) -> None:
        """Skip a segment that cannot be read or deleted. The next run tries it again."""
        self._segments.remove(segment)

    def set_aside(self, segment: Segment) -> Path:
        """Rename a segment whose replay fails again and again, so that no run tries it. Return its new path."""
        path = segment.path.with_suffix(".failed")
        segment.path.rename(path)
        self.skip(segment)
        for old in self._set_aside()[:-MAX_SET_ASIDE]:
            old.unlink()
        return path

    def erase(self, matches: Callable[[bytes], bool]) -> int:
        """Delete the lines that match from all files, also from refused and set-aside ones. Return their number."""
        self._seal()
        refused = self.directory / _REFUSED
        erased = 0
        for path in [*self._set_aside(), *([refused] if refused.exists() else [])]:
            erased += _erase_lines(path, matches)
        for segment in self._segments:
            erased += _erase_lines(segment.path, matches)
            segment.size_bytes = segment.path.stat().st_size
        return erased

    def _set_aside(self) -> list[Path]:
        return sorted(self.directory.glob("[0-9]*.failed"), key=lambda path: int(path.stem))

    def append_refused(self, line: bytes) -> None:
        """Append a line that Postgres will never accept to `refused.jsonl`, until that file is full."""
        path = self.directory / _REFUSED
        with open(path, "ab", opener=_private) as file:
            if file.tell() + len(line) < _MAX_REFUSED_BYTES:
                file.write(line + b"\n")

    def close(self) -> None:
        """Close the files and release the lock on the directory."""
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
        self._open = open(path, "xb", buffering=0, opener=_private)  # noqa: SIM115  stays open while lines are appended
        self._next_number += 1
        self._segments.append(Segment(path, 0))

    def _seal(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None


def _erase_lines(path: Path, matches: Callable[[bytes], bool]) -> int:
    """Replace the file by one without the lines that match, in one step. Return the number of these lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not matches(line)]
    if len(kept) < len(lines):
        copy = path.with_suffix(".copy")
        with open(copy, "wb", opener=_private) as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        copy.replace(path)
    return len(lines) - len(kept)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _lock(directory: Path) -> int:
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise JournalInUse(f"another process uses the journal in {directory}") from error
    return fd
