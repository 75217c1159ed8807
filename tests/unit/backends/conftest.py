from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vllm_page() -> bytes:
    """The metrics of a vLLM 0.32 that has served ten requests and is idle, without most of its families."""
    return (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
