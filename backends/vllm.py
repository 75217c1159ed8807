"""Adapter for vLLM, version 0.6 and later, and for servers with static batching.

Values of data-parallel ranks are added up. Each rank has its own memory, and vLLM distributes requests by their number,
so one rank may be full and preempt while the sum shows free memory. The gateway sees this in the preemptions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from backends.base import BackendSpec, EngineError, ModelCard, Snapshot, Translation
from backends.http import Endpoint
from backends.metrics_text import Sample, per_rank, read_count, read_samples, total, used_tokens
from backends.openai_api import has_failed, is_out_of_memory, read_error, read_models_and_metrics

QUEUE_FULL_STATUS = HTTPStatus.SERVICE_UNAVAILABLE  # limits: --max-num-queued-reqs, --max-num-queued-tokens

RANK_LABEL = "engine"  # the data-parallel rank; older versions do not have this label
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
SWAPPED = "vllm:num_requests_swapped"  # preempted requests of the V0 engine, up to version 0.8
CACHE_CONFIG = "vllm:cache_config_info"
KV_USAGE = "vllm:kv_cache_usage_perc"
KV_USAGE_BEFORE_0_10 = "vllm:gpu_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
PREEMPTIONS_BARE = "vllm:num_preemptions"  # the name in exporters that do not follow OpenMetrics

_FAMILIES = (RUNNING, WAITING, SWAPPED, CACHE_CONFIG, KV_USAGE, KV_USAGE_BEFORE_0_10, PREEMPTIONS, PREEMPTIONS_BARE)


@dataclass(frozen=True, slots=True)
class VllmBackend:
    """A vLLM server. It has OpenAI's routes and reports its memory and load as metrics."""

    endpoint: Endpoint

    @property
    def spec(self) -> BackendSpec:
        """The operator's configuration."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Read the engine's models, memory and load."""
        models, metrics = await read_models_and_metrics(self.endpoint)
        return read_snapshot(models, metrics, self.spec.kv_tokens)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Return whether the engine's queue is full."""
        return status == QUEUE_FULL_STATUS

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Return whether the error is a failure of the engine."""
        return has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Return whether the engine ran out of memory."""
        return is_out_of_memory(status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Return the fields of an error body, including the flat body of older versions."""
        return read_error(status, body)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Return None: the request needs no translation."""
        return None


class StaticBackend(VllmBackend):
    """A server with static batching. Its adapter is the same as vLLM's; only the scheduler treats it differently."""

    __slots__ = ()


def read_snapshot(models: tuple[ModelCard, ...], metrics: bytes, kv_tokens: int | None) -> Snapshot:
    """Return a snapshot from vLLM's metrics. Values of data-parallel ranks are added up.

    Usage is a share of the memory that vLLM has. If vLLM reports that size, the tokens in use are computed from it,
    even if the operator's `kv_tokens` is smaller.
    """
    samples = read_samples(metrics, _FAMILIES)
    ranks = {family: per_rank(found, RANK_LABEL) for family, found in samples.items()}
    usage = ranks[KV_USAGE] or ranks[KV_USAGE_BEFORE_0_10]
    capacity = _capacity_by_rank(samples[CACHE_CONFIG], usage)
    waiting = total(ranks[WAITING])
    return Snapshot(
        models=models,
        kv_capacity_tokens=kv_tokens if kv_tokens is not None else total(capacity),
        kv_used_tokens=used_tokens(usage, capacity, kv_tokens),
        kv_block_tokens=_block_tokens(samples[CACHE_CONFIG]),
        running=total(ranks[RUNNING]),
        waiting=waiting if waiting is None else waiting + (total(ranks[SWAPPED]) or 0),
        preemptions=total(ranks[PREEMPTIONS] or ranks[PREEMPTIONS_BARE]),
    )


def _capacity_by_rank(configs: Iterable[Sample], ranks: Iterable[str]) -> dict[str, float]:
    """Return the KV tokens of each rank. A configuration without a rank label applies to every rank."""
    capacity = {
        config.labels.get(RANK_LABEL, ""): float(tokens)
        for config in configs
        if (tokens := _capacity_tokens(config)) is not None
    }
    if "" in capacity:
        return dict.fromkeys(ranks, capacity[""]) or capacity
    return capacity


def _capacity_tokens(config: Sample) -> int | None:
    """Return the KV tokens of one rank: the reported number of tokens, or else the number of blocks times their size.

    The reported number is also right for hybrid models. One block is the null block, which holds no tokens. The V0
    engine had no null block, so for it the result is one block too small.
    """
    reported = read_count(config.labels.get("kv_cache_size_tokens"))
    if reported:
        return reported
    blocks = read_count(config.labels.get("num_gpu_blocks"))
    block_tokens = read_count(config.labels.get("block_size"))
    if not blocks or not block_tokens:
        return None
    return (blocks - 1) * block_tokens or None


def _block_tokens(configs: Iterable[Sample]) -> int:
    sizes = (read_count(config.labels.get("block_size")) for config in configs)
    return next((size for size in sizes if size), 1)
