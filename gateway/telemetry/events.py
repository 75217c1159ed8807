"""Counts what happens in the gateway and logs what an operator should know."""

import logging

from gateway.errors import BackendError, BackendRefused
from gateway.fleet.breaker import Circuit
from gateway.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)


class EventCounter:
    """Counts events in the metrics. Other parts get its methods as callbacks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def fallback(self, cause: str) -> None:
        """Count that a simpler mechanism replaced one that failed."""
        self._metrics.fallbacks.labels(cause).inc()

    def stale_metrics(self, backend: str) -> None:
        """Log and count that a backend's metrics do not change while its load does."""
        _log.warning("The metrics of %s do not change with its load; the gateway uses its own estimate", backend)
        self.fallback("metrics_stale")

    def scrape_failure(self, backend: str, error: Exception) -> None:
        """Count that a backend could not be scraped."""
        del error
        self._metrics.scrape_failures.labels(backend).inc()

    def backend_failure(self, backend: str, error: BackendError) -> None:
        """Count that an attempt on a backend failed.

        An engine chooses the code of its own refusal, perhaps from the request, so the label is the HTTP status then.
        """
        code = error.status if isinstance(error, BackendRefused) else error.code or error.status
        self._metrics.backend_failures.labels(backend, str(code)).inc()

    def circuit_change(self, backend: str, circuit: Circuit) -> None:
        """Log and count that a backend's circuit changed."""
        level = logging.WARNING if circuit is Circuit.OPEN else logging.INFO
        _log.log(level, "The circuit of %s is %s", backend, circuit.replace("_", "-"))
        self._metrics.circuit_changes.labels(backend, circuit).inc()

    def reload(self, result: str) -> None:
        """Count that the settings were read again; `result` is `applied` or `refused`."""
        self._metrics.reloads.labels(result).inc()
