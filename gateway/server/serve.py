"""Runs the gateway on a socket: starts the parts in order, handles signals, and stops them in reverse order."""

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import msgspec
import uvicorn

from gateway.clock import SystemClock
from gateway.config import Settings, data_dir
from gateway.errors import ListenError, StartFailed, StartInterrupted
from gateway.server.admin_key import stored_admin_key
from gateway.server.app import Gateway, create_app
from gateway.server.http_protocol import HttpProtocol
from gateway.server.reload import Reload
from gateway.storage.embedded import EmbeddedPostgres
from gateway.upstream.transport import Http1Transport

KEEP_ALIVE_S = 75
"""Idle connections close after this time. Clients and proxies close them earlier, so no request meets a closing one."""

LAST_ANSWERS_S = 5
"""How long the errors of requests that a stop has ended may take to reach their clients."""

GC_THRESHOLDS = (20_000, 10, 10)
"""Thresholds of the garbage collector: it runs less often than by default, because each run stops the event loop."""


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that answers requests at `url`.

    `settings` contain the URL of the embedded database and the created admin key, where there are such.
    """

    url: str
    settings: Settings
    _serving: asyncio.Task[None]

    async def stopped(self) -> None:
        """Wait until the gateway has stopped after a signal, or has failed to start."""
        await asyncio.shield(self._serving)


@asynccontextmanager
async def running(
    settings: Settings,
    read: Callable[[], Settings] | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> AsyncGenerator[RunningGateway]:
    """Run the gateway until the block ends, with an embedded Postgres if the settings name no other database.

    SIGINT and SIGTERM stop it: waiting and running requests have `server.shutdown_s` to finish. A second SIGINT stops
    it at once. SIGHUP reloads the settings.

    Args:
        settings: all settings.
        read: reads the settings again after SIGHUP; None to leave SIGHUP alone.
        on_step: called with one line before each part starts.

    Raises:
        ListenError: the port is in use, or the address does not belong to this machine.
        EmbeddedPostgresError: the embedded Postgres does not start, or another gateway uses its folder.
        StartFailed: a part that the gateway needs failed during the start.
        StartInterrupted: SIGINT or SIGTERM came before the gateway listened. Everything that had started is stopped.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(_interruptible_start())
        listener = stack.enter_context(_listen(settings.server.host, settings.server.port))
        started, reload_requested = settings, asyncio.Event()
        if read is not None:
            stack.enter_context(_on_sighup(reload_requested.set))
        if settings.database.url == "embedded":
            on_step(f"Starting PostgreSQL in {data_dir(settings) / 'postgres'} (the first start creates it)")
            settings = await _with_embedded_database(settings, stack)
        settings = _with_admin_key(settings)
        on_step("Starting the gateway")
        gateway = create_app(settings, clock=SystemClock(), transport=Http1Transport())
        server = _Server(gateway, settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stop, server, serving)
        if read is not None:
            reload = Reload(started, read, gateway.apply, gateway.note_reload)
            await stack.enter_async_context(_in_background(reload.run(reload_requested)))
        await server.listening.wait()
        if server.failed or server.should_exit:
            await serving
            raise StartFailed("the gateway did not start; the log says why") if server.failed else StartInterrupted()
        _tune_garbage_collector()
        host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
        yield RunningGateway(f"http://{host}:{listener.getsockname()[1]}", settings, serving)


def _tune_garbage_collector() -> None:
    """Exclude all objects of the start from collections. Otherwise a full collection stops the event loop for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@contextmanager
def _interruptible_start() -> Iterator[None]:
    """Cancel the start at SIGINT or SIGTERM. Once the server handles these signals itself, this does nothing.

    Raises:
        StartInterrupted: a signal cancelled the start.
    """
    loop, starting = asyncio.get_running_loop(), asyncio.current_task()
    assert starting is not None
    requested = asyncio.Event()

    def interrupt() -> None:
        requested.set()
        starting.cancel()

    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, interrupt)
    try:
        yield
    except asyncio.CancelledError:
        if not requested.is_set():
            raise
        starting.uncancel()
        raise StartInterrupted from None
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


@contextmanager
def _on_sighup(call: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, call)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _with_embedded_database(settings: Settings, stack: AsyncExitStack) -> Settings:
    """Start the embedded Postgres. Return the settings with its URL."""
    url = await stack.enter_async_context(EmbeddedPostgres(data_dir(settings) / "postgres"))
    return msgspec.structs.replace(settings, database=msgspec.structs.replace(settings.database, url=url))


def _with_admin_key(settings: Settings) -> Settings:
    if settings.auth.admin_key is not None:
        return settings
    key = stored_admin_key(data_dir(settings))
    return msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, admin_key=key))


async def _stop(server: "_Server", serving: asyncio.Task[None]) -> None:
    server.stop()
    await serving


class _Server(uvicorn.Server):
    """uvicorn, which also reports when it listens, and tells the gateway before it stops."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                gateway.asgi,
                loop="uvloop",
                http=HttpProtocol,
                ws="none",
                interface="asgi3",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_ANSWERS_S,
            )
        )
        self.listening = asyncio.Event()
        self.failed = False
        self._gateway = gateway
        self._settings = settings.server
        self._terminated = False

    def stop(self) -> None:
        """Stop serving, or the start if it is still under way."""
        self.should_exit = True
        if not self.started:
            self._gateway.abandon_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT and self.should_exit:
            os._exit(128 + sig)  # the embedded Postgres and simulated engines end with this process
        self._terminated = sig == signal.SIGTERM
        if sig == signal.SIGINT and self._gateway.running:
            sys.stderr.write(
                f"Stopping: {self._gateway.running} requests have up to {self._settings.shutdown_s:g} s to finish. "
                "Ctrl-C stops at once.\n"
            )
        super().handle_exit(sig, frame)
        self.stop()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.listening.set()  # also if the server did not start, so that nobody waits for it

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:  # uvicorn has logged why the application did not start
            self.failed = self.should_exit = True
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Report that the gateway is not ready, then accept no connections, then end what is left."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._settings.shutdown_s
        self._gateway.begin_shutdown()
        # Each answer ends its connection, so that the client's next request goes to another gateway.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        if self._terminated:
            await asyncio.sleep(min(self._settings.drain_delay_s, self._settings.shutdown_s))
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        await self._gateway.requests_finished(end_s - loop.time())
        self._gateway.end_requests()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop. uvicorn would raise them again at its end, before our cleanup has run."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only on sockets that name their protocol
        listener = socket.socket(*address[:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener
