"""CPU time, memory and cores of one process, from /proc. Linux only."""

import os
from contextlib import suppress
from pathlib import Path


class ProcessAccounts:
    """What the kernel accounts to a process: all its threads, without its children.

    Args:
        pid: process id.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, since the process started, in steps of 0.01 s."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * self._tick_s

    def resident_kib(self) -> int:
        """Return the resident memory in KiB."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ProcessLookupError(f"process {self.pid} has ended")

    def pin(self, cores: set[int]) -> None:
        """Keep all threads of the process, and threads that they start, on these cores."""
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended since
                os.sched_setaffinity(int(thread.name), cores)


def split_cores() -> tuple[set[int], set[int]]:
    """Return the core for the measured process and the cores for all others; with one core, both are that one."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others or [first])


def load_average() -> float:
    """Return the machine's load average over the last minute, this benchmark included."""
    return os.getloadavg()[0]
