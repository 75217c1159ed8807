"""What one process has used, read off /proc, and on which cores it may run. Linux only."""

import os
from contextlib import suppress
from pathlib import Path


class Accounts:
    """The accounts that the kernel keeps of a process, all its threads together, its children not.

    Args:
        pid: the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    def cpu_s(self) -> float:
        """Return the CPU seconds, user and system, since its start, to a hundredth."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * self._tick_s

    def resident_kib(self) -> int:
        """Return the resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise ProcessLookupError(f"process {self.pid} has ended")

    def pin(self, cores: set[int]) -> None:
        """Keep all its threads, and those that they start, on these cores."""
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(int(thread.name), cores)


def split_cores() -> tuple[set[int], set[int]]:
    """Return the core of the process that is measured, and those of all others; the same one where there is one."""
    first, *others = sorted(os.sched_getaffinity(0))
    return {first}, set(others or [first])


def load_average() -> float:
    """Return the machine's load over the last minute, ours included."""
    return os.getloadavg()[0]
