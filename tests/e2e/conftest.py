"""The gateway's environment, all of it real: sockets, a Postgres, engines."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import URL

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from bench.vllm_environment.engine import Engine as VllmEngine
from tests.databases import fresh_database
from tests.e2e.engines import CONTEXT_TOKENS, MODEL, Engine, FakeEngine, Received, Respond, fake_engine
from tests.e2e.gateway import Gateway, serving, settings_of

SIMULATED = EngineConfig(
    model=MODEL, kv_tokens=2 * CONTEXT_TOKENS, block_size=32, max_model_len=CONTEXT_TOKENS, speed=5.0
)
"""As large as the real vLLM of these tests: two answers of full length fill it. A token takes about 2 ms."""

StartGateway = Callable[..., Awaitable[Gateway]]
StartEngine = Callable[[Respond], Awaitable[FakeEngine]]
Served = Callable[[Respond], tuple[Gateway, FakeEngine]]

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
"""Run a test with a whole answer, and with a stream."""

_numbers = itertools.count(1)


async def unasked(request: Received, _: asyncio.StreamWriter) -> None:
    raise AssertionError(f"no test has said how to answer {request.path}")


@pytest.fixture
def app() -> str:
    """Return an application name that no other test has."""
    return f"app-{next(_numbers)}"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def simulated_engine() -> AsyncIterator[Engine]:
    async with listening(SIMULATED) as url:
        yield Engine(url)


@pytest.fixture(scope="session")
def vllm_engine(vllm: VllmEngine) -> Engine:
    return Engine(vllm.url)


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("simulated_engine", id="simulated"),
        pytest.param("vllm_engine", id="vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(300)]),
    ],
)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Yield each engine in turn. The real vLLM is started only if its tests are selected."""
    return request.getfixturevalue(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    engine: Engine, postgres_server: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    """Run one gateway over the engine for all tests of a module."""
    async with fresh_database(postgres_server) as database_url:
        settings = settings_of(database_url, tmp_path_factory.mktemp("gateway"), [engine.backend()])
        async with serving(settings) as gateway:
            yield gateway


@pytest_asyncio.fixture(loop_scope="session")
async def start_gateway(database_url: str, tmp_path: Path) -> AsyncIterator[StartGateway]:
    """Return a function that starts a gateway over these backends on its own database; keywords are settings."""
    async with AsyncExitStack() as stack:

        async def start(
            *backends: dict[str, Any], ready: bool = True, database: str = database_url, **sections: Any
        ) -> Gateway:
            settings = settings_of(database, tmp_path, list(backends), **sections)
            return await stack.enter_async_context(serving(settings, ready=ready))

        yield start


@pytest_asyncio.fixture(loop_scope="session")
async def start_engine() -> AsyncIterator[StartEngine]:
    """Return a function that starts fake engines with the test's answers."""
    async with AsyncExitStack() as stack:

        async def start(respond: Respond) -> FakeEngine:
            return await stack.enter_async_context(fake_engine(respond))

        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pair(
    postgres_server: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Gateway, FakeEngine]]:
    async with fresh_database(postgres_server) as database_url, fake_engine(unasked) as engine:
        backend = engine.backend("fake", api_key="the-engines-own-key")
        async with serving(settings_of(database_url, tmp_path_factory.mktemp("gateway"), [backend])) as gateway:
            yield gateway, engine


@pytest.fixture
def served_by(pair: tuple[Gateway, FakeEngine]) -> Served:
    """Yield one gateway over one fake engine, for tests of a module that do not affect each other."""
    gateway, engine = pair

    def answering(respond: Respond) -> tuple[Gateway, FakeEngine]:
        engine.respond = respond
        engine.received.clear()
        engine.left_s.clear()
        return gateway, engine

    return answering
