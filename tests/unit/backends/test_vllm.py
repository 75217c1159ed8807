from hypothesis import given
from hypothesis import strategies as st

from backends.base import Snapshot
from backends.vllm import read_snapshot

V0_6 = b"""\
# HELP vllm:cache_config_info information of cache_config
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_cpu_blocks="1024",num_gpu_blocks="573"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="m"} 3.0
vllm:num_requests_waiting{model_name="m"} 2.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:num_preemptions_total{model_name="m"} 7.0
"""


def test_reads_a_recorded_page(vllm_page: bytes):
    assert read_snapshot((), vllm_page, None) == Snapshot(
        models=(),
        kv_capacity_tokens=8192,
        kv_used_tokens=0,
        kv_block_tokens=32,
        running=0,
        waiting=0,
        preemptions=0,
    )


def test_used_tokens_are_a_share_of_the_capacity(vllm_page: bytes):
    busy = vllm_page.replace(
        b'kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0',
        b'kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25',
    )
    assert read_snapshot((), busy, None).kv_used_tokens == 2048


def test_capacity_without_its_label_excludes_the_null_block(vllm_page: bytes):
    for unknown in (b'kv_cache_size_tokens="None"', b'other="1"'):
        page = vllm_page.replace(b'kv_cache_size_tokens="8192"', unknown)
        assert read_snapshot((), page, None).kv_capacity_tokens == (256 - 1) * 32


def test_reads_an_old_page_without_ranks_and_new_names():
    assert read_snapshot((), V0_6, None) == Snapshot(
        models=(),
        kv_capacity_tokens=572 * 16,
        kv_used_tokens=572 * 16 // 2,
        kv_block_tokens=16,
        running=3,
        waiting=2,
        preemptions=7,
    )


def test_a_configuration_without_a_rank_applies_to_every_rank():
    page = V0_6.replace(b'{model_name="m"}', b'{engine="0",model_name="m"}')
    assert read_snapshot((), page, None) == read_snapshot((), V0_6, None)


def test_data_parallel_ranks_add_up():
    def rank(number: int, usage: float) -> bytes:
        labels = f'{{engine="{number}",model_name="m"}}'
        return (
            f'vllm:cache_config_info{{block_size="16",engine="{number}",kv_cache_size_tokens="1000"}} 1.0\n'
            f"vllm:kv_cache_usage_perc{labels} {usage}\nvllm:num_requests_running{labels} 3.0\n"
            f"vllm:num_requests_waiting{labels} 2.0\nvllm:num_preemptions_total{labels} 7.0\n"
        ).encode()

    assert read_snapshot((), rank(0, 0.5) + rank(1, 0.25), None) == Snapshot(
        models=(),
        kv_capacity_tokens=2000,
        kv_used_tokens=750,
        kv_block_tokens=16,
        running=6,
        waiting=4,
        preemptions=14,
    )


def test_the_new_gauge_takes_precedence():
    page = V0_6 + b'vllm:kv_cache_usage_perc{model_name="m"} 0.25\n'
    assert read_snapshot((), page, None).kv_used_tokens == 572 * 16 // 4


def test_reads_the_preemption_counter_without_its_suffix():
    page = V0_6.replace(b"preemptions_total", b"preemptions")
    assert read_snapshot((), page, None).preemptions == 7


def test_configured_capacity_does_not_change_the_used_tokens():
    snapshot = read_snapshot((), V0_6, 5000)
    assert snapshot.kv_capacity_tokens == 5000
    assert snapshot.kv_used_tokens == 572 * 16 // 2


def test_usage_is_a_share_of_the_configured_capacity_if_none_is_reported():
    page = b'vllm:kv_cache_usage_perc{engine="0"} 0.5\n'
    assert read_snapshot((), page, 5000).kv_used_tokens == 2500


def test_a_capacity_of_zero_is_unknown():
    page = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="1"} 1.0\nvllm:kv_cache_usage_perc 0.5\n'
    assert read_snapshot((), page, None) == Snapshot(models=(), kv_block_tokens=16)


def test_swapped_requests_of_the_v0_engine_count_as_waiting():
    page = V0_6 + b'vllm:num_requests_swapped{model_name="m"} 3.0\n'
    assert read_snapshot((), page, None).waiting == 5


def test_an_empty_page_gives_only_unknown_values():
    assert read_snapshot((), b"", None) == Snapshot(models=())


@given(st.data())
def test_any_line_may_be_missing(vllm_page: bytes, data: st.DataObject):
    lines = vllm_page.splitlines(keepends=True)
    kept = data.draw(st.lists(st.sampled_from(lines), unique=True))
    snapshot = read_snapshot((), b"".join(kept), None)
    assert snapshot.kv_used_tokens is None or snapshot.kv_used_tokens <= (snapshot.kv_capacity_tokens or 0)
