"""Measures how much CPU time processes outside the benchmark use, because they disturb it."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(slots=True)
class ForeignLoad:
    """Mean number of cores that other processes used since `start`.

    This is the CPU time of the machine minus that of our own processes: the descendants of this process, and processes
    whose working directory is in our folder, such as Postgres. A process of ours that started and ended in between
    counts as foreign.

    Args:
        folder: the benchmark's folder.
    """

    folder: Path
    _start_s: float = 0.0
    _busy_s: float = 0.0
    _ours_s: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Start the measurement."""
        self._start_s, self._busy_s, self._ours_s = time.monotonic(), _busy_s(), self._our_times()

    def cores(self) -> float:
        """Return the mean number of cores since `start`."""
        ours = sum(now_s - self._ours_s.get(pid, 0.0) for pid, now_s in self._our_times().items())
        return max(0.0, float(_busy_s() - self._busy_s - ours) / (time.monotonic() - self._start_s))

    def _our_times(self) -> dict[int, float]:
        own = psutil.Process()
        family = {own.pid, *(child.pid for child in own.children(recursive=True))}
        times = {}
        for process in psutil.process_iter():
            try:
                if process.pid in family or self.folder in Path(process.cwd()).parents:
                    spent = process.cpu_times()
                    times[process.pid] = spent.user + spent.system
            except (psutil.Error, OSError):
                # The process has ended since, or belongs to another user.
                continue
        return times


def _busy_s() -> float:
    """Return the busy CPU seconds of all cores since boot, without idle and I/O wait, with stolen time."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
