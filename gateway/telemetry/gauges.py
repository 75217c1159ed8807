"""The metrics that show how things stand: read off when somebody asks, not kept up to date in between."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.fleet.breaker import Circuit
from gateway.fleet.entry import BackendEntry
from gateway.scheduling.scheduler import Scheduler
from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Gauges:
    """Sets every gauge.

    Args:
        metrics: holds them.
        scheduler: what waits and what runs.
        backends: all backends by name.
        records: counts of records since the start, by what became of them.
    """

    metrics: Metrics
    scheduler: Scheduler
    backends: Mapping[str, BackendEntry]
    records: Callable[[], Mapping[str, int]]

    def refresh(self) -> None:
        """Read off how things stand now."""
        metrics, scheduler = self.metrics, self.scheduler
        metrics.waiting.set(scheduler.waiting)
        metrics.waiting_tokens.set(scheduler.waiting_tokens)
        metrics.running.set(scheduler.running)
        for state, count in self.records().items():
            metrics.history.labels(state).set(count)
        for gauge in metrics.of_backends:
            gauge.clear()  # those that were taken out are to be seen no more
        for entry in self.backends.values():
            self._read_backend(entry)

    def _read_backend(self, entry: BackendEntry) -> None:
        metrics, name = self.metrics, entry.name
        metrics.circuit.labels(name).set(list(Circuit).index(entry.circuit))
        metrics.takes_work.labels(name).set(entry.takes_work)
        load = self.scheduler.load(name)
        if load is None:
            return
        metrics.in_flight.labels(name).set(len(load.ledger))
        metrics.kv_reserved.labels(name).set(round(load.ledger.peak_tokens()))
        metrics.kv_target.labels(name).set(load.target.share)
        metrics.believed.labels(name).set(load.believed)
