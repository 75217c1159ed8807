"""Prometheus metrics. Each gateway has its own registry, so two gateways in one process do not share counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 4, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """Every metric of the gateway."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and outcome.", "route", "status")
        self.queue_s = self._histogram("queue_seconds", "Time from arrival to dispatch.", _SECONDS)
        self.ttft_s = self._histogram(
            "ttft_seconds", "Time from arrival to the first byte of a streamed answer.", _SECONDS
        )
        self.e2e_s = self._histogram("e2e_seconds", "Time from arrival to the last byte.", _SECONDS)
        self.output_tokens = self._histogram("output_tokens", "Tokens generated per request.", _TOKENS)
        self.prediction_error = self._histogram(
            "prediction_error_tokens",
            "Absolute difference between the predicted median and the actual length.",
            _TOKENS,
        )
        self.fallbacks = self._counter(
            "fallbacks", "Times that a simpler mechanism replaced one that failed, by cause.", "cause"
        )
        self.backend_failures = self._counter(
            "backend_failures", "Failed attempts to get an answer from a backend.", "backend", "code"
        )
        self.scrape_failures = self._counter("scrape_failures", "Failed scrapes of a backend.", "backend")
        self.circuit_changes = self._counter(
            "backend_circuit_changes", "Changes of a circuit breaker, by new state.", "backend", "to"
        )
        self.reloads = self._counter("reloads", "Reloads of the settings.", "result")
        self.waiting = self._gauge("queue_waiting", "Requests in the queue.")
        self.waiting_tokens = self._gauge("queue_waiting_tokens", "Tokens in the queue: prompts and predicted answers.")
        self.running = self._gauge("requests_running", "Requests that backends run.")
        self.in_flight = self._gauge(
            "backend_in_flight",
            "Requests that this gateway has sent to the backend and that are not finished.",
            "backend",
        )
        self.kv_reserved = self._gauge(
            "backend_kv_reserved_tokens", "Predicted peak of the KV tokens of these requests.", "backend"
        )
        self.kv_target = self._gauge(
            "backend_kv_target", "Largest share of the KV memory that the predicted peak may use.", "backend"
        )
        self.believed = self._gauge(
            "backend_metrics_believed",
            "1 if the backend's metrics change with its load, 0 if they are ignored.",
            "backend",
        )
        self.circuit = self._gauge("backend_circuit", "Circuit breaker: 0 closed, 1 half-open, 2 open.", "backend")
        self.takes_work = self._gauge("backend_takes_work", "1 if the backend may get requests.", "backend")
        self.of_backends = (
            self.in_flight,
            self.kv_reserved,
            self.kv_target,
            self.believed,
            self.circuit,
            self.takes_work,
        )
        self.history = self._gauge("history_records", "Request records since the start, by state.", "state")

    def render(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"magnus_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"magnus_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"magnus_{name}", text, buckets=buckets, registry=self.registry)
