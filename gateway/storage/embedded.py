"""An embedded Postgres, for who has none: started with the gateway, stopped with it, its data kept."""

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
    """PostgreSQL 18 under `home`, reached through a private socket; one owner at a time.

    The server belongs to a supervisor process (see `postgres_supervisor`), which ends it however we end.

    >>> async def serve() -> None:
    ...     async with EmbeddedPostgres(Path("~/.local/share/magnus/postgres")) as url:
    ...         ...
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self._command = [sys.executable, "-P", postgres_supervisor.__file__, str(home)]
        self._supervisor: subprocess.Popen[str] | None = None

    async def start(self) -> str:
        """Start the server and give the URL of its database, `postgresql+asyncpg://…`.

        Raises:
            EmbeddedPostgresError: Another process owns the directory, or the server does not start.
        """
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Stop the server and wait for its end; connections that are still open are closed."""
        await asyncio.to_thread(self._stop)

    async def __aenter__(self) -> str:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    def _start(self) -> str:
        # A session of its own: a terminal's Ctrl-C is for the gateway, which still has rows to write.
        self._supervisor = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._supervisor.stdout is not None
        said = self._supervisor.stdout.readline().strip()
        if said.startswith("postgresql"):
            return said
        self._stop()
        raise EmbeddedPostgresError(
            said or f"the supervisor of the embedded Postgres in {self.home} ended without a word"
        )

    def _stop(self) -> None:
        ending, self._supervisor = self._supervisor, None
        if ending is None:
            return
        ending.communicate()
        if ending.returncode < 0:
            # Killed: a successor without an owner ends the server that it left behind.
            subprocess.run(self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False)


@asynccontextmanager
async def database_url(url: str, data_dir: Path) -> AsyncGenerator[str]:
    """Give a database to a command beside the gateway: the configured one, the running embedded one, or one started.

    Raises:
        EmbeddedPostgresError: The embedded Postgres does not start.
    """
    home = data_dir / "postgres"
    if url != "embedded":
        yield url
    elif running := url_of_running(home):
        yield running
    else:
        async with EmbeddedPostgres(home) as started:
            yield started
