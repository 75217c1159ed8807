"""Runs a command until the other end of standard input closes, then ends all processes that the command started.

A test run that is killed cannot clean up, but its pipes close. The command gets its own process group. This process
stays outside the group, so that it can end every process in it.
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
TRACKER_TIMEOUT_S = 5.0


def main(command: list[str]) -> int:
    """Run the command until it ends or its holder closes the pipe, and return its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    while child.poll() is None and not _is_released():
        continue
    end_group(child.pid)
    return child.wait()


def _is_released() -> bool:
    """Return whether the holder has closed standard input or died. It never writes, so readable means closed."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
    return bool(readable)


def end_group(group: int) -> None:
    """Kill every process of the group.

    Python's resource tracker may end by itself, last: it removes the shared memory of the killed processes.
    """
    deadline = time.monotonic() + TRACKER_TIMEOUT_S
    while commands := _commands(group):
        for pid, command in commands.items():
            if TRACKER not in command or time.monotonic() > deadline:
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
            # The process ended after it was listed.
            continue
    return found


def _commands(group: int) -> dict[str, bytes]:
    """Return the command lines of the group's processes, without zombies, which have none."""
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
