"""The metrics page of a simulated engine, under vLLM's names or TGI's.

`EngineMetrics` counts what happens to requests. A collector reads the engine's present state when the page is scraped.
Each engine has its own registry, because one process may run several engines.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, UnknownMetricFamily
from prometheus_client.registry import Collector

from backends.simulator.config import EngineConfig
from backends.simulator.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 20000.0)
_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


class _HistogramNames(NamedTuple):
    """The names of the histograms; None leaves the histogram out of the page."""

    ttft_s: str | None
    e2e_s: str
    prompt_tokens: str
    generated_tokens: str


_VLLM_HISTOGRAMS = _HistogramNames(
    ttft_s="vllm:time_to_first_token_seconds",
    e2e_s="vllm:e2e_request_latency_seconds",
    prompt_tokens="vllm:request_prompt_tokens",
    generated_tokens="vllm:request_generation_tokens",
)
_TGI_HISTOGRAMS = _HistogramNames(
    ttft_s=None,
    e2e_s="tgi_request_duration",
    prompt_tokens="tgi_request_input_length",
    generated_tokens="tgi_request_generated_tokens",
)


class EngineMetrics:
    """Totals and distributions since the start of one engine. Times are real seconds.

    Counts that change with every token are plain integers, which cost less than `prometheus_client.Counter` and need
    no lock: only the event loop changes them. Histograms change once or twice per request.

    Attributes:
        submitted: sequences that entered the engine.
        prompt_tokens: prompt tokens of all sequences that have their first token.
        generation_tokens: generated tokens.
        rejections: requests refused because the queue was full.
        finished: finished sequences by finish reason; `error` for lost ones.
    """

    def __init__(self, names: _HistogramNames, labels: Mapping[str, str]) -> None:
        self.registry = CollectorRegistry()
        self.submitted = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.rejections = 0
        self.finished: Counter[str] = Counter()
        self._labels = dict(labels)
        self._ttft_s = names.ttft_s and self._histogram(names.ttft_s, "Time to first token in seconds.", _SECONDS)
        self._e2e_s = self._histogram(names.e2e_s, "Time from arrival to last token in seconds.", _SECONDS)
        self._request_prompt = self._histogram(names.prompt_tokens, "Prompt tokens of a request.", _TOKENS)
        self._request_generated = self._histogram(names.generated_tokens, "Generated tokens of a request.", _TOKENS)

    def observe_first_token(self, prompt_tokens: int, ttft_s: float) -> None:
        """Record that a sequence has its first token."""
        self.prompt_tokens += prompt_tokens
        if self._ttft_s:
            self._ttft_s.observe(ttft_s)

    def observe_finish(self, reason: str, prompt_tokens: int, generation_tokens: int, e2e_s: float) -> None:
        """Record that a sequence has ended. The reason `error` means that the engine lost it."""
        self.finished[reason] += 1
        self._e2e_s.observe(e2e_s)
        self._request_prompt.observe(prompt_tokens)
        self._request_generated.observe(generation_tokens)

    def page(self) -> bytes:
        """Return the metrics page in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(name, description, tuple(self._labels), buckets=buckets, registry=self.registry)
        return family.labels(**self._labels) if self._labels else family


def vllm_metrics(config: EngineConfig, engine: Engine) -> EngineMetrics:
    """Return metrics with the names and labels of vLLM 0.32."""
    metrics = EngineMetrics(_VLLM_HISTOGRAMS, {"engine": "0", "model_name": config.model})
    metrics.registry.register(_VllmCollector(config, engine, metrics))
    return metrics


def tgi_metrics(config: EngineConfig, engine: Engine) -> EngineMetrics:
    """Return metrics with the names of TGI 3.3. Earlier versions have no `tgi_batch_max_total_tokens`."""
    metrics = EngineMetrics(_TGI_HISTOGRAMS, {})
    metrics.registry.register(_TgiCollector(config, engine, metrics))
    return metrics


class _VllmCollector(Collector):
    def __init__(self, config: EngineConfig, engine: Engine, metrics: EngineMetrics) -> None:
        self._config = config
        self._engine = engine
        self._metrics = metrics
        self._labels = {"engine": "0", "model_name": config.model}

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Yield the families of one scrape."""
        engine, metrics = self._engine, self._metrics
        usage = engine.kv_used_tokens / engine.kv_capacity_tokens
        yield self._gauge("vllm:num_requests_running", "Requests in the batch.", engine.running)
        yield self._gauge("vllm:num_requests_waiting", "Requests in the queue.", engine.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "KV cache usage; 1 means 100 percent.", usage)
        yield self._waiting_by_reason()
        yield self._counter("vllm:num_preemptions", "Preemptions.", engine.preemptions)
        yield self._counter("vllm:prompt_tokens", "Prefilled tokens.", metrics.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Generated tokens.", metrics.generation_tokens)
        yield self._counter("vllm:prefix_cache_queries", "Tokens looked up in the cache.", metrics.prompt_tokens)
        yield self._counter("vllm:prefix_cache_hits", "Tokens found in the prefix cache.", 0)
        yield self._requests_by_finish_reason()
        yield self._rejections()
        yield self._cache_config()

    def _gauge(self, name: str, description: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, description, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _counter(self, name: str, description: str, value: float) -> CounterMetricFamily:
        family = CounterMetricFamily(name, description, labels=tuple(self._labels))
        family.add_metric(tuple(self._labels.values()), value)
        return family

    def _waiting_by_reason(self) -> GaugeMetricFamily:
        name, description = "vllm:num_requests_waiting_by_reason", "Requests in the queue, by reason."
        family = GaugeMetricFamily(name, description, labels=(*self._labels, "reason"))
        family.add_metric((*self._labels.values(), "capacity"), self._engine.waiting)
        family.add_metric((*self._labels.values(), "deferred"), 0)
        return family

    def _requests_by_finish_reason(self) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "vllm:request_success", "Finished requests, by reason.", labels=(*self._labels, "finished_reason")
        )
        for reason in _FINISH_REASONS:
            family.add_metric((*self._labels.values(), reason), self._metrics.finished[reason])
        return family

    def _rejections(self) -> CounterMetricFamily:
        family = CounterMetricFamily(
            "vllm:admission_rejections", "Requests refused by a queue limit.", labels=("model_name", "reason")
        )
        family.add_metric((self._config.model, "max_num_queued_reqs"), self._metrics.rejections)
        return family

    def _cache_config(self) -> GaugeMetricFamily:
        """Return the family whose labels carry the cache's size. Block 0 is included, as in vLLM."""
        config = self._config
        labels = {
            "block_size": str(config.block_size),
            "cache_dtype": "auto",
            "enable_prefix_caching": "False",
            "engine": "0",
            "gpu_memory_utilization": "0.9",
            "kv_cache_size_tokens": str(config.num_gpu_blocks * config.block_size),
            "num_gpu_blocks": str(config.num_gpu_blocks),
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "The cache's configuration.", labels=tuple(labels))
        family.add_metric(tuple(labels.values()), 1)
        return family


class _TgiCollector(Collector):
    def __init__(self, config: EngineConfig, engine: Engine, metrics: EngineMetrics) -> None:
        self._config = config
        self._engine = engine
        self._metrics = metrics

    def collect(self) -> Iterator[GaugeMetricFamily | UnknownMetricFamily]:
        """Yield the families of one scrape. TGI reports reserved memory as `tgi_batch_current_max_tokens`."""
        engine, metrics = self._engine, self._metrics
        yield GaugeMetricFamily("tgi_queue_size", "Requests in the queue.", engine.waiting)
        yield GaugeMetricFamily("tgi_batch_current_size", "Requests in the batch.", engine.running)
        yield GaugeMetricFamily("tgi_batch_current_max_tokens", "Reserved KV tokens.", engine.kv_used_tokens)
        if self._config.tgi_version == "3":
            yield GaugeMetricFamily("tgi_batch_max_total_tokens", "KV tokens in all.", engine.kv_capacity_tokens)
        # TGI's counters do not end in `_total`, which `CounterMetricFamily` would append.
        yield UnknownMetricFamily("tgi_request_count", "Requests.", metrics.submitted)
        yield UnknownMetricFamily("tgi_request_success", "Finished requests.", metrics.finished.total())
        failures = UnknownMetricFamily("tgi_request_failure", "Refused requests, by error.", labels=("err",))
        failures.add_metric(("overloaded",), metrics.rejections)
        yield failures
