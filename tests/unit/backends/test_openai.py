import httpx2
import pytest

from backends.base import BackendSpec, EngineError, ModelCard, Snapshot
from backends.http import Endpoint
from backends.openai import OpenAIBackend, read_snapshot

SGLANG = b"""\
sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 3.0
sglang:num_queue_reqs{dp_rank="0",tp_rank="0"} 2.0
sglang:token_usage{dp_rank="0",tp_rank="0"} 0.25
sglang:max_total_num_tokens{dp_rank="0",tp_rank="0"} 1000.0
sglang:num_retracted_requests_total{dp_rank="0",tp_rank="0"} 7.0
"""
LLAMA_CPP = b"""\
# TYPE llamacpp:kv_cache_usage_ratio gauge
llamacpp:kv_cache_usage_ratio 0.5
llamacpp:requests_processing 3
llamacpp:requests_deferred 2
"""


def test_reads_sglangs_names():
    assert read_snapshot((), SGLANG, None) == Snapshot(
        models=(), kv_capacity_tokens=1000, kv_used_tokens=250, running=3, waiting=2, preemptions=7
    )


def test_sglangs_data_parallel_ranks_add_up_and_tensor_parallel_ones_do_not():
    page = SGLANG + SGLANG.replace(b'tp_rank="0"', b'tp_rank="1"') + SGLANG.replace(b'dp_rank="0"', b'dp_rank="1"')
    assert read_snapshot((), page, None) == Snapshot(
        models=(), kv_capacity_tokens=2000, kv_used_tokens=500, running=6, waiting=4, preemptions=14
    )


def test_sglangs_memory_is_unknown_until_it_is_allocated():
    page = SGLANG.replace(b" 1000.0", b" 0.0")
    assert read_snapshot((), page, None).kv_capacity_tokens is None
    assert read_snapshot((), page, 4000).kv_used_tokens == 1000


@pytest.mark.parametrize(("kv_tokens", "used"), [(None, None), (4000, 2000)])
def test_llama_cpps_usage_counts_with_a_configured_capacity(kv_tokens: int | None, used: int | None):
    assert read_snapshot((), LLAMA_CPP, kv_tokens) == Snapshot(
        models=(), kv_capacity_tokens=kv_tokens, kv_used_tokens=used, running=3, waiting=2
    )


def test_metrics_with_unknown_names_are_unknown():
    assert read_snapshot((), b"process_open_fds 34.0\n", None) == Snapshot(models=())


def nothing_served(models: tuple[str, ...] | None) -> OpenAIBackend:
    spec = BackendSpec(name="gpu-0", kind="openai", url="http://gpu-0:8000", models=models)
    return OpenAIBackend(Endpoint(spec, httpx2.MockTransport(lambda _: httpx2.Response(404)), 1.0))


async def test_a_server_without_a_list_of_models_serves_the_configured_ones():
    assert await nothing_served(("a",)).scrape() == Snapshot(models=(ModelCard("a"),))


def test_an_account_without_credit_is_not_a_full_queue():
    refusal = EngineError("no credit", "insufficient_quota", code="insufficient_quota")
    assert not nothing_served(None).is_queue_full(429, refusal)
