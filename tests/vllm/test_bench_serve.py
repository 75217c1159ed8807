"""vLLM's own load generator against the gateway."""

import asyncio
from pathlib import Path

import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from bench.loadgen.run import Load, run_vllm
from bench.vllm_environment.install import environment
from tests.e2e.gateway import serving, settings_of

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(180)]

REQUESTS = 100


async def test_vllm_bench_serve_streams_without_an_error(tmp_path: Path, database_url: str) -> None:
    home = environment()
    config = EngineConfig(model="tiny", kv_tokens=4096, speed=4.0)
    async with listening(config) as first, listening(config) as second:
        backends = [{"name": name, "kind": "vllm", "url": url} for name, url in (("gpu-0", first), ("gpu-1", second))]
        async with serving(settings_of(database_url, tmp_path, backends)) as gateway:
            load = Load(gateway.url, "tiny", home / "tiny", requests=REQUESTS, per_second=50.0)
            outcome = await asyncio.to_thread(run_vllm, str(home / "bin" / "vllm"), load, tmp_path)
            assert (outcome.completed, outcome.failed) == (REQUESTS, 0)
            totals = (await gateway.stats())["totals"]
            assert (totals["ok"], totals["failed"]) == (totals["requests"], 0)
