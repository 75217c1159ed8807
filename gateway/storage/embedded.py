"""An embedded Postgres for installations that have no server. It runs as long as the gateway; its data stays."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType

from gateway.errors import EmbeddedPostgresError
from gateway.storage import postgres_supervisor
from gateway.storage.postgres_supervisor import url_of_running


class EmbeddedPostgres:
    """PostgreSQL 18 in the directory `home`, reached through a private socket. One process may own it at a time.

    The server belongs to a supervisor process (see `postgres_supervisor`), which stops it however this process ends.

    >>> async def serve() -> None:
    ...     async with EmbeddedPostgres(Path("~/.local/share/magnus/postgres")) as url:
    ...         ...
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._command = [sys.executable, "-P", postgres_supervisor.__file__, str(home)]
        self._supervisor: subprocess.Popen[str] | None = None

    async def start(self) -> str:
        """Start the server and return the URL of its database, `postgresql+asyncpg://…`.

        Raises:
            EmbeddedPostgresError: another process owns the directory, or the server does not start.
        """
        starting = asyncio.ensure_future(asyncio.to_thread(self._start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.wait([starting])  # a server can be stopped only after it has started
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the server and wait for its end. Open connections are closed."""
        await asyncio.to_thread(self._stop)

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _start(self) -> str:
        # A new session: Ctrl-C in a terminal must not reach the supervisor, because the gateway still writes rows.
        self._supervisor = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._supervisor.stdout is not None
        line = self._supervisor.stdout.readline().strip()
        if line.startswith("postgresql"):
            return line
        self._stop()
        raise EmbeddedPostgresError(
            line or f"the supervisor of the embedded Postgres in {self.home} ended without an error message"
        )

    def _stop(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is None:
            return
        supervisor.communicate()
        if supervisor.returncode < 0:
            # The supervisor was killed. A second one, whose stdin is closed, stops the server that is still running.
            subprocess.run(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


@asynccontextmanager
async def database_url(url: str, data_dir: Path) -> AsyncGenerator[str]:
    """Yield the URL of the database: the configured one, the running embedded one, or one that is started.

    For commands that run beside the gateway.

    Raises:
        EmbeddedPostgresError: the embedded Postgres does not start.
    """
    home = data_dir / "postgres"
    if url != "embedded":
        yield url
    elif running := url_of_running(home):
        yield running
    else:
        async with EmbeddedPostgres(home) as started:
            yield started
