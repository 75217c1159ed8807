"""What the gateway remembers, wired: past requests, API keys, trained models, and doing without them.

Everything here lives in the database, which may be away at any time. Each way to it says what happens then.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from gateway.clock import Clock
from gateway.config import Settings, cache_dir
from gateway.errors import KeysUnavailable
from gateway.prediction.history import Caller
from gateway.prediction.predictor import Predictor
from gateway.storage.backend_store import BackendStore
from gateway.storage.database import DATABASE_ERRORS, create_database_engine
from gateway.storage.journal import Journal
from gateway.storage.keys import KeyStore
from gateway.storage.maintenance import RETRY_S, DatabaseMaintainer
from gateway.storage.recorder import Recorder
from gateway.storage.repository import Repository
from gateway.storage.stats import Stats, read_stats
from gateway.training.learner import Learner
from gateway.training.schedule import Cadence

_log = logging.getLogger(__name__)


class Archive:
    """The database's users, on one engine.

    Args:
        settings: `database.url` is a real one here.
        journal: the folder that keeps records while the database is away.
        predictor: is taught what earlier runs have seen, and gets every model that is trained.
        clock: where times come from.
        on_fallback: told the cause each time that something less good takes over.
        on_ready: called once the database can be used, before anything else is read.
    """

    def __init__(
        self,
        settings: Settings,
        journal: Path,
        predictor: Predictor,
        clock: Clock,
        on_fallback: Callable[[str], None],
        on_ready: Callable[[], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._predictor = predictor
        self._clock = clock
        self._on_fallback = on_fallback
        self._on_ready = on_ready
        self._engine = create_database_engine(settings.database.url)
        self._repository = Repository(self._engine)
        self.backends = BackendStore(self._engine)
        self.recorder = Recorder(self._repository, Journal(journal))
        self.database = DatabaseMaintainer(
            settings.database.url,
            self._engine,
            warm_up=self._warm_up,
            keep_days=settings.database.retention_days,
            clock=clock,
            on_failure=lambda: on_fallback("database_away"),
        )

    async def learn(self) -> None:
        """Bring the trained predictor up once the database is; without it, history goes on predicting."""
        await self.database.ready()
        learner = self._learner()
        while True:
            try:
                await learner.run()
            except DATABASE_ERRORS as error:
                _log.warning("The length model is not looked after now: %s", error)
                self._on_fallback("learner_without_database")
                await asyncio.sleep(RETRY_S)

    async def application_of(self, key_hash: bytes) -> str | None:
        """Name the application that an API key belongs to; None when it is unknown or revoked.

        Raises:
            KeysUnavailable: the database is away.
        """
        try:
            return await KeyStore(self._engine).lookup(key_hash)
        except DATABASE_ERRORS as error:
            self._on_fallback("keys_without_database")
            raise KeysUnavailable("API keys cannot be checked now; try again later") from error

    async def stats(self, app: str | None, user: str | None, since: datetime | None) -> Stats | None:
        """Read what became of past requests; None while the database is away."""
        try:
            await self.recorder.flush()
            return await read_stats(self._engine, app=app, user=user, since=since)
        except DATABASE_ERRORS as error:
            _log.warning("No stats from the database: %s", error)
            self._on_fallback("stats_without_database")
            return None

    def recorder_state(self) -> dict[str, Any]:
        """Count the records since the start by what became of them."""
        names = ("pending", "written", "journaled", "replayed", "dropped", "refused")
        return {name: getattr(self.recorder, name) for name in names}

    async def aclose(self) -> None:
        """Write what is pending and let go of the database."""
        await self.recorder.aclose()
        await self._engine.dispose()

    def _learner(self) -> Learner:
        prediction = self._settings.prediction
        return Learner(
            self._predictor,
            self._engine,
            database_url=self._settings.database.url,
            embedder=prediction.embedder,
            cache=cache_dir(),
            window_rows=prediction.window_rows,
            threads=prediction.train_threads,
            cadence=Cadence(prediction.train_every_s, prediction.train_after_rows, prediction.min_train_rows),
            clock=self._clock,
        )

    async def _warm_up(self) -> None:
        """Take over what earlier runs have kept, and teach the predictor what they have seen."""
        await self._on_ready()
        predictor = self._predictor
        lengths = await self._repository.length_counts()
        predictor.history.warm_up((Caller(row.app, row.model, row.user), row.tokens, row.count) for row in lengths)
        for ratio in await self._repository.token_ratios():
            predictor.prompt_tokens.learn_one(ratio.app, ratio.model, ratio.prompt_bytes, ratio.input_tokens)
        _log.info("Warm start with %d remembered answers", sum(row.count for row in lengths))
