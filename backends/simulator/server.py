"""The server of a simulated engine."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import uvicorn
import uvloop
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException

from backends.simulator.config import EngineConfig, build_engine
from backends.simulator.loop import EngineLoop
from backends.simulator.metrics import tgi_metrics, vllm_metrics
from backends.simulator.tgi_api import TgiApi
from backends.simulator.truth import Truth
from backends.simulator.vllm_api import VllmApi


def create_app(config: EngineConfig) -> Litestar:
    """Return the engine's application. The engine runs from the application's start to its shutdown.

    Raises:
        WorkloadError: a line of the truth or workload file is wrong.
        OSError: the file cannot be read.
    """
    engine = build_engine(config)
    metrics = tgi_metrics(config, engine) if config.kind == "tgi" else vllm_metrics(config, engine)
    loop = EngineLoop(engine, metrics, speed=config.speed)
    truth = Truth.load(truth=config.truth, workload=config.workload, seed=config.seed)

    @asynccontextmanager
    async def clock_running(app: Litestar) -> AsyncIterator[None]:
        app.state.engine_loop = loop
        task = asyncio.create_task(loop.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    return Litestar(
        (TgiApi if config.kind == "tgi" else VllmApi)(config, loop, truth).routes(),
        lifespan=[clock_running],
        exception_handlers={HTTPException: _error},
        openapi_config=None,
        logging_config=None,
    )


@asynccontextmanager
async def listening(config: EngineConfig, *, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve on the running event loop until the block ends. Yields the base URL."""
    app = create_app(config)
    with _bound(host, port) as listener:
        server = _Server(_uvicorn_config(app))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            await server.listening.wait()
            name = f"[{host}]" if ":" in host else host
            yield f"http://{name}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            app.state.engine_loop.abort_all()
            await serving


def serve(
    config: EngineConfig,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    ready: Callable[[str], None] | None = None,
    exit_with_parent: bool = False,
) -> None:
    """Serve until SIGINT or SIGTERM, or with `exit_with_parent` until stdin is closed. Print nothing.

    `ready` is called with the base URL when the server listens. Port 0 takes a free port. A parent process that holds
    the
    other end of stdin's pipe stops its engines however it ends.

    Raises:
        WorkloadError: a line of the truth or workload file is wrong.
        OSError: the file cannot be read, or the address is in use.
    """
    uvloop.run(_serve_until_stopped(config, host, port, ready, exit_with_parent=exit_with_parent))


async def _serve_until_stopped(
    config: EngineConfig, host: str, port: int, ready: Callable[[str], None] | None, *, exit_with_parent: bool
) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    if exit_with_parent:
        _call_at_stdin_eof(lambda: loop.call_soon_threadsafe(stopped.set))
    async with listening(config, host=host, port=port) as url:
        if ready is not None:
            ready(url)
        await stopped.wait()


class _Server(uvicorn.Server):
    """A server with an event that is set when it listens. The caller handles the signals."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=1,
    )


def _bound(host: str, port: int) -> socket.socket:
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets whose protocol is TCP.
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _call_at_stdin_eof(callback: Callable[[], object]) -> None:
    """Call `callback` when stdin is closed. A thread reads it, because event loops cannot watch every kind of file."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            continue
        callback()

    threading.Thread(target=watch, name="stdin-watch", daemon=True).start()


def _error(_: Request[Any, Any, Any], error: HTTPException) -> Response[dict[str, str]]:
    return Response({"detail": error.detail}, status_code=error.status_code)
