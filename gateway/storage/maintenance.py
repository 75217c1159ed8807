"""The database as the gateway sees it: made ready when it can be had, and not needed while it cannot."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.clock import Clock
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.migrate import upgrade
from gateway.storage.partitions import maintain

RETRY_S = 5.0
MAINTENANCE_S = 3600.0

_log = logging.getLogger(__name__)


class DatabaseMaintainer:
    """Migrates, warms up, and keeps the partitions in order.

    Args:
        url: where it is.
        engine: connections to it.
        warm_up: reads what the gateway wants to know from earlier runs; called once, after the migrations.
        keep_days: how long requests are kept.
        on_failure: told when it could not be made ready, or not be kept in order.
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
        self._tried = asyncio.Event()
        self._ready = asyncio.Event()

    async def tried(self) -> None:
        """Wait for the first attempt to make it ready: with luck a warm start, in any case no wait for ever."""
        await self._tried.wait()

    async def ready(self) -> None:
        """Wait until it can be used."""
        await self._ready.wait()

    async def run(self) -> None:
        """Make the database ready, trying until it is, and keep it in order; ends by being cancelled."""
        while not await self._attempt(self._prepare):
            self._tried.set()
            await asyncio.sleep(RETRY_S)
        self._tried.set()
        self._ready.set()
        while True:
            await self._attempt(self._maintain)
            await asyncio.sleep(MAINTENANCE_S)

    async def _prepare(self) -> None:
        await upgrade(self._url)
        await self._warm_up()

    async def _maintain(self) -> None:
        dropped = await maintain(self._engine, today=self._clock.now().date(), keep_days=self._keep_days)
        if dropped:
            _log.info("Forgot %d days of requests older than %d days", dropped, self._keep_days)

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> bool:
        try:
            await step()
        except DATABASE_ERRORS as error:
            _log.warning("The database is not ready; requests go to the journal: %s", error)
            self._on_failure()
            return False
        return True
