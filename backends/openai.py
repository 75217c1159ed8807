"""Adapter for any other server with OpenAI's routes. It understands the metrics of SGLang and llama.cpp."""

from dataclasses import dataclass
from http import HTTPStatus

from backends.base import BackendSpec, EngineError, ModelCard, Snapshot, Translation
from backends.http import Endpoint
from backends.metrics_text import per_rank, read_samples, total, used_tokens
from backends.openai_api import has_failed, is_out_of_memory, read_error, read_models_and_metrics

QUEUE_FULL_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
OUT_OF_CREDIT = "insufficient_quota"


@dataclass(frozen=True, slots=True)
class MetricNames:
    """The names of one engine's metrics. "" means that the engine does not have the metric."""

    running: str
    waiting: str
    kv_usage: str
    kv_capacity: str = ""
    preemptions: str = ""
    rank_label: str = ""


# SGLang has one series per tensor- and pipeline-parallel worker. Only data-parallel ranks are added up.
SGLANG = MetricNames(
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    kv_usage="sglang:token_usage",
    kv_capacity="sglang:max_total_num_tokens",
    preemptions="sglang:num_retracted_requests_total",
    rank_label="dp_rank",
)
# llama.cpp does not report its capacity. Its usage is a share of the operator's `kv_tokens`. Later versions report
# no usage either.
LLAMA_CPP = MetricNames(
    running="llamacpp:requests_processing",
    waiting="llamacpp:requests_deferred",
    kv_usage="llamacpp:kv_cache_usage_ratio",
)


@dataclass(frozen=True, slots=True)
class OpenAIBackend:
    """A server with OpenAI's routes."""

    endpoint: Endpoint

    @property
    def spec(self) -> BackendSpec:
        """The operator's configuration."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Read the engine's models, and its memory and load if it reports them."""
        models, metrics = await read_models_and_metrics(self.endpoint)
        return read_snapshot(models, metrics, self.spec.kv_tokens)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Return whether the engine's queue is full. An account without credit is not a full queue."""
        return status in QUEUE_FULL_STATUSES and error.code != OUT_OF_CREDIT

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Return whether the error is a failure of the engine."""
        return has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Return whether the engine ran out of memory."""
        return is_out_of_memory(status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Return the fields of an error body in OpenAI's format."""
        return read_error(status, body)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Return None: the request needs no translation."""
        return None


def read_snapshot(models: tuple[ModelCard, ...], metrics: bytes, kv_tokens: int | None) -> Snapshot:
    """Return a snapshot from the metrics of SGLang or llama.cpp. Values that the page does not have are None."""
    names = LLAMA_CPP if b"llamacpp:" in metrics else SGLANG
    families = (names.running, names.waiting, names.kv_usage, names.kv_capacity, names.preemptions)
    samples = read_samples(metrics, filter(None, families))
    ranks = {family: per_rank(samples.get(family, ()), names.rank_label) for family in families}
    # SGLang's gauge is 0 until its memory is allocated.
    capacity = {rank: tokens for rank, tokens in ranks[names.kv_capacity].items() if tokens > 0}
    return Snapshot(
        models=models,
        kv_capacity_tokens=kv_tokens if kv_tokens is not None else total(capacity),
        kv_used_tokens=used_tokens(ranks[names.kv_usage], capacity, kv_tokens),
        running=total(ranks[names.running]),
        waiting=total(ranks[names.waiting]),
        preemptions=total(ranks[names.preemptions]),
    )
