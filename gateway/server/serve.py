"""The gateway on a socket: started, announced, and stopped in good order."""

import asyncio
import gc
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import uvicorn

from gateway.clock import SystemClock
from gateway.config import Settings, data_dir
from gateway.errors import ListenError
from gateway.server.admin_key import kept_admin_key
from gateway.server.app import Gateway, create_app
from gateway.server.reload import Reload
from gateway.storage.embedded import EmbeddedPostgres
from gateway.upstream.transport import Http1Transport

KEEP_ALIVE_S = 75
"""Longer than clients and proxies keep a connection that idles, so that none is sent a request while it closes."""

GC_THRESHOLDS = (20_000, 10, 10)


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """A gateway that answers requests at `url`, and the settings that it runs with: what was left out is filled in."""

    url: str
    settings: Settings
    _serving: asyncio.Task[None]

    async def stopped(self) -> None:
        """Wait until the gateway has stopped, by a signal or a failure to start."""
        await asyncio.shield(self._serving)


@asynccontextmanager
async def running(settings: Settings, read: Callable[[], Settings] | None = None) -> AsyncGenerator[RunningGateway]:
    """Run the gateway, with an embedded Postgres where the settings say so, for as long as the block lasts.

    SIGINT and SIGTERM stop it: what waits is evicted, what runs may end within `server.shutdown_s`; a second SIGINT
    does not wait. SIGHUP has it read its settings again, where `read` tells how.

    Raises:
        ListenError: the port is taken, or the address is not this machine's.
        EmbeddedPostgresError: it does not start, or another gateway owns it.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_bound(settings.server.host, settings.server.port))
        started, hung_up = settings, asyncio.Event()
        if read is not None:
            stack.enter_context(_on_hang_up(hung_up.set))
        settings = _with_admin_key(await _with_database(settings, stack))
        gateway = create_app(settings, clock=SystemClock(), transport=Http1Transport())
        server = _Server(gateway, settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        stack.push_async_callback(_stop, server, serving)
        if read is not None:
            reload = Reload(started, read, gateway.apply, gateway.note_reload)
            await stack.enter_async_context(_in_background(reload.run(hung_up)))
        await server.listening.wait()
        _spare_the_collector()
        host = f"[{settings.server.host}]" if ":" in settings.server.host else settings.server.host
        yield RunningGateway(f"http://{host}:{listener.getsockname()[1]}", settings, serving)


def _spare_the_collector() -> None:
    """Keep the collector off what stays for good: a full collection would walk it all, and stop the loop for 0.1 s."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


@contextmanager
def _on_hang_up(call: Callable[[], None]) -> Iterator[None]:
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


async def _with_database(settings: Settings, stack: AsyncExitStack) -> Settings:
    """Start the embedded Postgres if there is to be one; give the settings with the database's real URL."""
    if settings.database.url != "embedded":
        return settings
    url = await stack.enter_async_context(EmbeddedPostgres(data_dir(settings) / "postgres"))
    return msgspec.structs.replace(settings, database=msgspec.structs.replace(settings.database, url=url))


def _with_admin_key(settings: Settings) -> Settings:
    if settings.auth.admin_key is not None:
        return settings
    key = kept_admin_key(data_dir(settings))
    return msgspec.structs.replace(settings, auth=msgspec.structs.replace(settings.auth, admin_key=key))


async def _stop(server: "_Server", serving: asyncio.Task[None]) -> None:
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """uvicorn, telling when it listens, and letting the app know first when it stops."""

    def __init__(self, gateway: Gateway, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                gateway.asgi,
                loop="uvloop",
                http="httptools",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(settings.server.shutdown_s),
            )
        )
        self.listening = asyncio.Event()
        self._gateway = gateway

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.listening.set()  # nobody is to wait for a server that did not start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.begin_shutdown()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals on the loop: uvicorn raises them once more at its end, before we are at ours."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _bound(host: str, port: int) -> socket.socket:
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's delay off only where the socket names its protocol
        listener = socket.socket(*address[:3])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address[4])
    except OSError as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener
