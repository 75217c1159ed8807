"""The gauges: metrics of the current state. They are set when `/metrics` is read, not while the state changes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gateway.fleet.breaker import Circuit
from gateway.fleet.entry import BackendEntry
from gateway.scheduling.scheduler import Scheduler
from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Gauges:
    """Sets every gauge.

    Attributes:
        metrics: contains the gauges.
        scheduler: source of the queue and of each backend's load.
        backends: all backends by name.
        records: returns the number of records since the start by their state.
    """

    metrics: Metrics
    scheduler: Scheduler
    backends: Mapping[str, BackendEntry]
    records: Callable[[], Mapping[str, int]]

    def refresh(self) -> None:
        """Set all gauges to the current state."""
        metrics, scheduler = self.metrics, self.scheduler
        metrics.waiting.set(scheduler.waiting)
        metrics.waiting_tokens.set(scheduler.waiting_tokens)
        metrics.running.set(scheduler.running)
        for state, count in self.records().items():
            metrics.history.labels(state).set(count)
        for gauge in metrics.of_backends:
            gauge.clear()  # otherwise removed backends would keep their last values
        for entry in self.backends.values():
            self._set_backend(entry)

    def _set_backend(self, entry: BackendEntry) -> None:
        metrics, name = self.metrics, entry.name
        metrics.circuit.labels(name).set(list(Circuit).index(entry.circuit))
        metrics.takes_work.labels(name).set(entry.takes_work)
        status = self.scheduler.backend_status(name)
        if status is None:
            return
        metrics.in_flight.labels(name).set(status.in_flight)
        metrics.kv_reserved.labels(name).set(status.kv_reserved_tokens)
        metrics.kv_target.labels(name).set(status.kv_target)
        metrics.believed.labels(name).set(status.metrics_fresh)
