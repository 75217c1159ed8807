"""vLLM's metrics page, under the names and labels of version 0.32."""

from backends.simulator.config import EngineConfig
from backends.simulator.exposition import family, histogram, sample
from backends.simulator.loop import EngineLoop

_FINISH_REASONS = ("stop", "length", "abort", "error", "repetition")


def vllm_metrics(config: EngineConfig, loop: EngineLoop) -> str:
    """Return the page."""
    labels = {"engine": "0", "model_name": config.model}
    return "\n".join((*_state(loop, labels), *_totals(loop, labels), _cache_config(config), ""))


def _state(loop: EngineLoop, labels: dict[str, str]) -> list[str]:
    engine = loop.engine
    by_reason = "vllm:num_requests_waiting_by_reason"
    gauges = {
        "vllm:num_requests_running": engine.running,
        "vllm:num_requests_waiting": engine.waiting,
        "vllm:kv_cache_usage_perc": engine.kv_used_tokens / engine.kv_capacity_tokens,
    }
    return [
        *(family(name, "gauge", sample(name, value, labels)) for name, value in gauges.items()),
        family(
            by_reason,
            "gauge",
            sample(by_reason, engine.waiting, labels | {"reason": "capacity"}),
            sample(by_reason, 0, labels | {"reason": "deferred"}),
        ),
    ]


def _totals(loop: EngineLoop, labels: dict[str, str]) -> list[str]:
    seen = loop.observations
    success, rejections = "vllm:request_success_total", "vllm:admission_rejections_total"
    counters = {
        "vllm:num_preemptions_total": loop.engine.preemptions,
        "vllm:prompt_tokens_total": seen.prompt_tokens,
        "vllm:generation_tokens_total": seen.generation_tokens,
        "vllm:prefix_cache_queries_total": seen.prompt_tokens,
        "vllm:prefix_cache_hits_total": 0,
    }
    histograms = {
        "vllm:time_to_first_token_seconds": seen.ttft_s,
        "vllm:e2e_request_latency_seconds": seen.e2e_s,
        "vllm:request_prompt_tokens": seen.request_prompt_tokens,
        "vllm:request_generation_tokens": seen.request_generation_tokens,
    }
    return [
        *(family(name, "counter", sample(name, value, labels)) for name, value in counters.items()),
        family(
            success,
            "counter",
            *(sample(success, seen.finished[why], {**labels, "finished_reason": why}) for why in _FINISH_REASONS),
        ),
        family(
            rejections,
            "counter",
            sample(rejections, seen.rejections, {"model_name": labels["model_name"], "reason": "max_num_queued_reqs"}),
        ),
        *(histogram(name, observed, labels) for name, observed in histograms.items()),
    ]


def _cache_config(config: EngineConfig) -> str:
    """The figures that a reader of the page needs are labels here; block 0 is counted, as vLLM counts it."""
    name = "vllm:cache_config_info"
    labels = {
        "block_size": str(config.block_size),
        "cache_dtype": "auto",
        "enable_prefix_caching": "False",
        "engine": "0",
        "gpu_memory_utilization": "0.9",
        "kv_cache_size_tokens": str(config.num_gpu_blocks * config.block_size),
        "num_gpu_blocks": str(config.num_gpu_blocks),
    }
    return family(name, "gauge", sample(name, 1, labels))
