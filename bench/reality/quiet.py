"""How much of the machine others take: a measurement beside somebody's tests is none."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]


@dataclass(slots=True)
class ForeignLoad:
    """Cores that processes of others kept busy since `start`.

    What the machine did in all, less what our own processes did: all that descend from this one, and those that work
    in our folder, as a Postgres does that its guard has let go. One of ours that both began and ended meanwhile counts
    as another's.
    """

    folder: Path
    _start_s: float = 0.0
    _busy_s: float = 0.0
    _ours_s: dict[int, float] = field(default_factory=dict)

    def start(self) -> None:
        """Begin anew."""
        self._start_s, self._busy_s, self._ours_s = time.monotonic(), _busy_s(), self._our_times()

    def cores(self) -> float:
        """Return the mean so far."""
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
                # It ended between the listing and the look, or is somebody else's.
                continue
        return times


def _busy_s() -> float:
    """CPU seconds of all cores since boot that were neither idle nor waiting for a disk; stolen ones count."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
