"""The metrics that show how things stand: read off when somebody asks, not kept up to date in between."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gateway.scheduling.scheduler import Scheduler
from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Gauges:
    """Sets every gauge.

    Args:
        metrics: holds them.
        scheduler: what waits and what runs.
        backends: the names of all backends.
        records: counts of records since the start, by what became of them.
    """

    metrics: Metrics
    scheduler: Scheduler
    backends: Iterable[str]
    records: Callable[[], Mapping[str, int]]

    def refresh(self) -> None:
        """Read off how things stand now."""
        metrics, scheduler = self.metrics, self.scheduler
        metrics.waiting.set(scheduler.waiting)
        metrics.waiting_tokens.set(scheduler.waiting_tokens)
        metrics.running.set(scheduler.running)
        for state, count in self.records().items():
            metrics.history.labels(state).set(count)
        for name in self.backends:
            self._read_backend(name)

    def _read_backend(self, name: str) -> None:
        load = self.scheduler.load(name)
        if load is None:
            return
        metrics = self.metrics
        metrics.in_flight.labels(name).set(len(load.ledger))
        metrics.kv_reserved.labels(name).set(round(load.ledger.peak_tokens()))
        metrics.kv_target.labels(name).set(load.target.share)
        metrics.believed.labels(name).set(load.believed)
