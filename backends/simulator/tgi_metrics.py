"""TGI's metrics page, under the names of version 3.3; older ones have no `tgi_batch_max_total_tokens`."""

from backends.simulator.config import EngineConfig
from backends.simulator.exposition import family, histogram, sample
from backends.simulator.loop import EngineLoop


def tgi_metrics(config: EngineConfig, loop: EngineLoop) -> str:
    """Return the page; what TGI has reserved is its current batch's max tokens."""
    engine, seen = loop.engine, loop.observations
    gauges = {
        "tgi_queue_size": engine.waiting,
        "tgi_batch_current_size": engine.running,
        "tgi_batch_current_max_tokens": engine.kv_used_tokens,
    }
    if config.tgi_version == "3":
        gauges["tgi_batch_max_total_tokens"] = engine.kv_capacity_tokens
    counters = {"tgi_request_count": seen.submitted, "tgi_request_success": seen.finished.total()}
    histograms = {
        "tgi_request_duration": seen.e2e_s,
        "tgi_request_input_length": seen.request_prompt_tokens,
        "tgi_request_generated_tokens": seen.request_generation_tokens,
    }
    lines = [
        *(family(name, "gauge", sample(name, value)) for name, value in gauges.items()),
        *(family(name, "counter", sample(name, value)) for name, value in counters.items()),
        family("tgi_request_failure", "counter", sample("tgi_request_failure", seen.rejections, {"err": "overloaded"})),
        *(histogram(name, observed) for name, observed in histograms.items()),
    ]
    return "\n".join((*lines, ""))
