"""The real engine that the tests of this folder share: it takes half a minute to start."""

from collections.abc import Iterator

import pytest

from tests.vllm.engine import Engine, running_engine


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running_engine(tmp_path_factory.mktemp("vllm")) as engine:
        yield engine
