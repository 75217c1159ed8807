"""Starts the trained predictor in a gateway that already serves, and keeps its model up to date."""

import asyncio
import logging
from collections.abc import Callable

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.clock import Clock
from gateway.prediction.embedder import load_embedder
from gateway.prediction.features import N_FEATURES
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.predictor import Predictor, Version
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.maintenance import RETRY_S
from gateway.training.process import TrainerProcess, TrainingOrder
from gateway.training.registry import ModelRegistry, ServingModel
from gateway.training.schedule import Cadence
from gateway.training.supervisor import Supervisor
from gateway.training.window import TrainingRows

_log = logging.getLogger(__name__)


class Learner:
    """Loads the embedder, then trains models and lets the predictor serve them.

    Until the embedder is loaded, history alone predicts and no features are recorded.

    Args:
        predictor: gets the embedder and each model that is to serve.
        engine: the database, ready to use.
        database_url: its URL, for the training process.
        embedder: "static", "off" or the name of a sentence transformer.
        window_rows: number of the newest requests that a model is trained on.
        threads: threads of the training process.
        cadence: when to train.
        clock: source of the time.
        on_fallback: called with the cause if the embedder cannot be loaded.
    """

    def __init__(  # noqa: PLR0913 - one keyword per setting
        self,
        predictor: Predictor,
        engine: AsyncEngine,
        *,
        database_url: str,
        embedder: str,
        window_rows: int,
        threads: int,
        cadence: Cadence,
        clock: Clock,
        on_fallback: Callable[[str], None],
    ) -> None:
        self._predictor = predictor
        self._engine = engine
        self._database_url = database_url
        self._embedder = embedder
        self._window_rows = window_rows
        self._threads = threads
        self._cadence = cadence
        self._clock = clock
        self._on_fallback = on_fallback

    async def run_with_retries(self, on_failure: Callable[[], None]) -> None:
        """Run until cancelled, and start again whenever the database is unavailable."""
        while True:
            try:
                await self.run()
            except DATABASE_ERRORS as error:
                _log.warning("The length model is not trained while the database is unavailable: %s", error)
                on_failure()
                await asyncio.sleep(RETRY_S)

    async def run(self) -> None:
        """Load the embedder, then train and load models until cancelled."""
        embedder = await asyncio.to_thread(load_embedder, self._embedder, self._on_fallback)
        features_version = self._predictor.use_embedder(embedder)
        _log.info("Features are made from now on, with embedder %s", embedder.name)
        supervisor = self._supervisor(features_version)
        self._predictor.report_outcomes_to(supervisor.learn_one)
        await supervisor.run()

    def _supervisor(self, features_version: str) -> Supervisor:
        order = TrainingOrder(
            database_url=self._database_url,
            features_version=features_version,
            window_rows=self._window_rows,
            min_rows=self._cadence.min_rows,
            threads=self._threads,
        )
        return Supervisor(
            ModelRegistry(self._engine),
            TrainingRows(self._engine, features_version=features_version, n_features=N_FEATURES),
            TrainerProcess(order).run,
            self._cadence,
            on_model=self._serve,
            clock=self._clock,
        )

    async def _serve(self, model: ServingModel | None) -> None:
        if model is None:
            self._predictor.serve(None, None)
            return
        fitted = await asyncio.to_thread(FittedPredictor.from_bytes, model.artifact)
        info = model.info
        self._predictor.serve(fitted, Version(info.version, info.created_at, info.rows))
