"""The task that migrates the database at start-up and maintains it while the gateway runs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.clock import Clock
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.erasure import delete_unused_names
from gateway.storage.migrate import upgrade
from gateway.storage.partitions import maintain

RETRY_S = 5.0
MAINTENANCE_S = 3600.0

_log = logging.getLogger(__name__)


class DatabaseMaintainer:
    """Runs the migrations, restores the gateway's memory from the database, and maintains the partitions.

    Args:
        url: the database's URL.
        engine: connections to the database.
        warm_up: reads the data of earlier runs; called once, after the migrations.
        keep_days: number of days that requests are kept.
        clock: the gateway's clock.
        on_failure: called when the database could not be prepared or maintained.
    """

    def __init__(
        self,
        url: str,
        engine: AsyncEngine,
        *,
        warm_up: Callable[[], Awaitable[None]],
        keep_days: int,
        clock: Clock,
        on_failure: Callable[[], None],
    ) -> None:
        self._url = url
        self._engine = engine
        self._warm_up = warm_up
        self._keep_days = keep_days
        self._clock = clock
        self._on_failure = on_failure
        self._attempted = asyncio.Event()
        self._ready = asyncio.Event()

    async def attempted(self) -> None:
        """Wait for the end of the first attempt, successful or not, so that start-up never waits for ever."""
        await self._attempted.wait()

    async def ready(self) -> None:
        """Wait until the database can be used."""
        await self._ready.wait()

    async def run(self) -> None:
        """Prepare the database, retry until that succeeds, then maintain it until the task is cancelled."""
        while not await self._attempt(self._prepare):
            self._attempted.set()
            await asyncio.sleep(RETRY_S)
        self._attempted.set()
        self._ready.set()
        while True:
            await self._attempt(self._maintain)
            await asyncio.sleep(MAINTENANCE_S)

    async def _prepare(self) -> None:
        await upgrade(self._url)
        await self._warm_up()

    async def _maintain(self) -> None:
        today = self._clock.now().date()
        dropped = await maintain(self._engine, today=today, keep_days=self._keep_days)
        if dropped:
            _log.info("Deleted %d days of requests that were older than %d days", dropped, self._keep_days)
        unused = await delete_unused_names(self._engine, today - timedelta(days=self._keep_days))
        if unused:
            _log.info("Deleted %d end users and applications without requests", unused)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except DATABASE_ERRORS as error:
            _log.warning("The database is unreachable; requests are written to the journal: %s", error)
            self._on_failure()
            return False
        return True
