"""Run a command for as long as somebody holds the other end of standard input, then end all that it started.

A test run that is killed cannot clean up after itself, but its pipes close all the same. The command gets a process
group of its own, and this process stays outside it, to see it through to the last one.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.1
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_PATIENCE_S = 5.0


def main(command: list[str]) -> int:
    """Run the command until it ends or is let go, and return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    while child.poll() is None and not _let_go():
        continue
    end_group(child.pid)
    return child.wait()


def _let_go() -> bool:
    """Wait a moment for the holder to close standard input or to die; it never writes, so readable means closed."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
    return bool(readable)


def end_group(group: int) -> None:
    """Kill every process of the group.

    Python's resource tracker dies last, by itself: it removes the shared memory that killed processes leave behind.
    """
    patience = time.monotonic() + TRACKER_PATIENCE_S
    while commands := _commands(group):
        for pid, command in commands.items():
            if TRACKER not in command or time.monotonic() > patience:
                _kill(pid)
        time.sleep(POLL_S / 2)


def members(leader_of: Callable[[int], int], leader: int) -> list[str]:
    """Return the ids of the processes whose group (`os.getpgid`) or session (`os.getsid`) has that leader."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if leader_of(int(folder.name)) == leader:
                found.append(folder.name)
        except ProcessLookupError:
            # It ended between the listing and the look.
            continue
    return found


def _commands(group: int) -> dict[str, bytes]:
    """Return the command lines of the group's processes; one that is dead but not yet reaped has none."""
    commands = {}
    for pid in members(os.getpgid, group):
        try:
            commands[pid] = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
    return {pid: command for pid, command in commands.items() if command}


def _kill(pid: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
