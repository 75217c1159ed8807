"""Any other server with OpenAI's routes; what SGLang and llama.cpp tell in their metrics is understood."""

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
    """What a make of engine calls its metrics; "" is one that it does not have."""

    running: str
    waiting: str
    kv_usage: str
    kv_capacity: str = ""
    preemptions: str = ""
    rank_label: str = ""


# SGLang repeats a series for each tensor- and pipeline-parallel worker; only data-parallel ranks add up.
SGLANG = MetricNames(
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    kv_usage="sglang:token_usage",
    kv_capacity="sglang:max_total_num_tokens",
    preemptions="sglang:num_retracted_requests_total",
    rank_label="dp_rank",
)
# llama.cpp does not tell its capacity: usage counts where the operator does. Later versions tell no usage either.
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
        """The engine as its operator describes it."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Ask the engine for its models, and for memory and load where it tells them."""
        models, metrics = await read_models_and_metrics(self.endpoint)
        return read_snapshot(models, metrics, self.spec.kv_tokens)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later'; an account without credit stays without."""
        return status in QUEUE_FULL_STATUSES and error.code != OUT_OF_CREDIT

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine itself failed."""
        return has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent."""
        return is_out_of_memory(status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read an error body in OpenAI's shape."""
        return read_error(status, body)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Leave the request as it is."""
        return None


def read_snapshot(models: tuple[ModelCard, ...], metrics: bytes, kv_tokens: int | None) -> Snapshot:
    """Read a snapshot from metrics in whichever names they are; what the page does not have stays None."""
    names = LLAMA_CPP if b"llamacpp:" in metrics else SGLANG
    families = (names.running, names.waiting, names.kv_usage, names.kv_capacity, names.preemptions)
    samples = read_samples(metrics, filter(None, families))
    ranks = {family: per_rank(samples.get(family, ()), names.rank_label) for family in families}
    # SGLang's gauge stands at zero until its memory is set up.
    capacity = {rank: tokens for rank, tokens in ranks[names.kv_capacity].items() if tokens > 0}
    return Snapshot(
        models=models,
        kv_capacity_tokens=kv_tokens if kv_tokens is not None else total(capacity),
        kv_used_tokens=used_tokens(ranks[names.kv_usage], capacity, kv_tokens),
        running=total(ranks[names.running]),
        waiting=total(ranks[names.waiting]),
        preemptions=total(ranks[names.preemptions]),
    )
