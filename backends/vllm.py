"""vLLM, from 0.6 on.

Data-parallel ranks are added up, though each has memory of its own and vLLM spreads requests over them by count: one
may be full, and preempt, while their sum shows room. The gateway learns of it by the preemptions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from backends.base import BackendSpec, EngineError, ModelCard, Snapshot, Translation
from backends.http import Endpoint
from backends.metrics_text import Sample, per_rank, read_count, read_samples, total, used_tokens
from backends.openai_api import has_failed, is_out_of_memory, read_error, read_models_and_metrics

QUEUE_FULL_STATUS = HTTPStatus.SERVICE_UNAVAILABLE  # beyond --max-num-queued-reqs or --max-num-queued-tokens

RANK_LABEL = "engine"  # a data-parallel rank; older versions have none
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
SWAPPED = "vllm:num_requests_swapped"  # preempted ones of the first engine, up to 0.8
CACHE_CONFIG = "vllm:cache_config_info"
KV_USAGE = "vllm:kv_cache_usage_perc"
KV_USAGE_BEFORE_0_10 = "vllm:gpu_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
PREEMPTIONS_BARE = "vllm:num_preemptions"  # as exporters that do not follow OpenMetrics name it

_FAMILIES = (RUNNING, WAITING, SWAPPED, CACHE_CONFIG, KV_USAGE, KV_USAGE_BEFORE_0_10, PREEMPTIONS, PREEMPTIONS_BARE)


@dataclass(frozen=True, slots=True)
class VllmBackend:
    """A vLLM server: OpenAI's routes, its memory and load in its metrics."""

    endpoint: Endpoint

    @property
    def spec(self) -> BackendSpec:
        """The engine as its operator describes it."""
        return self.endpoint.spec

    async def scrape(self) -> Snapshot:
        """Ask the engine for its models, memory and load."""
        models, metrics = await read_models_and_metrics(self.endpoint)
        return read_snapshot(models, metrics, self.spec.kv_tokens)

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later'."""
        return status == QUEUE_FULL_STATUS

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine itself failed."""
        return has_failed(status)

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent."""
        return is_out_of_memory(status, error)

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read an error body, vLLM's flat one of old included."""
        return read_error(status, body)

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Leave the request as it is."""
        return None


class StaticBackend(VllmBackend):
    """A server with static batching. Its adapter is the same as vLLM's; only the scheduler treats it differently."""

    __slots__ = ()


def read_snapshot(models: tuple[ModelCard, ...], metrics: bytes, kv_tokens: int | None) -> Snapshot:
    """Read a snapshot from vLLM's metrics; data-parallel ranks add up.

    Usage is a share of the memory that vLLM has, so where it tells its size the tokens in use are its own even if the
    operator's `kv_tokens` allow the gateway less.
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
    """Read each rank's KV tokens; a configuration without a rank, as older versions have, is every rank's."""
    capacity = {
        config.labels.get(RANK_LABEL, ""): float(tokens)
        for config in configs
        if (tokens := _capacity_tokens(config)) is not None
    }
    if "" in capacity:
        return dict.fromkeys(ranks, capacity[""]) or capacity
    return capacity


def _capacity_tokens(config: Sample) -> int | None:
    """Read one rank's KV tokens: what vLLM says outright (true for hybrid models too), or else its blocks.

    One block is the null block, which holds no request's tokens; the first engine had none, and loses one here.
    """
    told = read_count(config.labels.get("kv_cache_size_tokens"))
    if told:
        return told
    blocks = read_count(config.labels.get("num_gpu_blocks"))
    block_tokens = read_count(config.labels.get("block_size"))
    if not blocks or not block_tokens:
        return None
    return (blocks - 1) * block_tokens or None


def _block_tokens(configs: Iterable[Sample]) -> int:
    sizes = (read_count(config.labels.get("block_size")) for config in configs)
    return next((size for size in sizes if size), 1)
