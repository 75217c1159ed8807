from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def vllm_page() -> bytes:
    """The metrics page of an idle vLLM 0.32 that has served ten requests. Most of its families are left out."""
    return (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_bytes()
