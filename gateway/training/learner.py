"""Brings the trained predictor up beside a gateway that already serves, and keeps it learning."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.clock import Clock
from gateway.prediction.embedder import load_embedder
from gateway.prediction.features import N_FEATURES, FeatureExtractor
from gateway.prediction.fitting import FittedPredictor
from gateway.prediction.length_predictor import LengthPredictor
from gateway.prediction.predictor import Predictor, Version
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.maintenance import RETRY_S
from gateway.training.process import TrainerProcess
from gateway.training.registry import ModelRegistry, ServingModel
from gateway.training.report import TrainingOrder
from gateway.training.schedule import Cadence
from gateway.training.supervisor import Supervisor
from gateway.training.warm_start import replay
from gateway.training.window import TrainingRows

_log = logging.getLogger(__name__)


class Learner:
    """Loads the embedder, replays history into the features, then looks after the model.

    Until that is done history alone predicts, and no features are recorded.

    Args:
        predictor: gets the features and each version that is to serve.
        engine: the database, ready.
        database_url: the same, for the trainer's process.
        embedder: what reads texts: "static", "off" or a sentence transformer.
        cache: where the static model is kept.
        window_rows: newest requests that a model is trained on.
        threads: of the trainer.
        cadence: when to train.
        clock: where times come from.
    """

    def __init__(  # noqa: PLR0913 - one keyword a setting
        self,
        predictor: Predictor,
        engine: AsyncEngine,
        *,
        database_url: str,
        embedder: str,
        cache: Path,
        window_rows: int,
        threads: int,
        cadence: Cadence,
        clock: Clock,
    ) -> None:
        self._predictor = predictor
        self._engine = engine
        self._database_url = database_url
        self._embedder = embedder
        self._cache = cache
        self._window_rows = window_rows
        self._threads = threads
        self._cadence = cadence
        self._clock = clock

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
        """Prepare, then train and load for ever; ends by being cancelled."""
        extractor = FeatureExtractor(await asyncio.to_thread(load_embedder, self._embedder, self._cache))
        learned = await replay(self._engine, extractor)
        self._predictor.lengths = LengthPredictor(extractor)
        _log.info("Features are made (embedder %s, %d answers replayed)", extractor.embedder.name, learned)
        supervisor = self._supervisor(extractor.version)
        self._predictor.on_outcome = supervisor.learn_one
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
            on_model=self._take_up,
            clock=self._clock,
        )

    async def _take_up(self, model: ServingModel | None) -> None:
        if model is None:
            self._predictor.serve(None, None)
            return
        fitted = await asyncio.to_thread(FittedPredictor.from_bytes, model.artifact)
        info = model.info
        self._predictor.serve(fitted, Version(info.version, info.created_at, info.rows))
