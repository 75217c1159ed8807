"""Keeps the gateway's model up to date: starts a training when one is due, and loads the version that serves.

The training runs in another process, so a crash of it is only a line in the log, and it takes no time from the event
loop. It writes the new version to Postgres. Every gateway on that database finds it there, and also what `magnus
predictor` changes.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable

from gateway.clock import Clock
from gateway.errors import TrainerFailed
from gateway.storage.database import DATABASE_ERRORS
from gateway.training.process import TrainingReport
from gateway.training.registry import ModelInfo, ModelRegistry, ServingModel
from gateway.training.schedule import Cadence, DriftDetector, Reason, Situation, reason_to_train
from gateway.training.window import TrainingRows

POLL_S = 5.0
"""Seconds between two reads of the registry; an old version may serve for this long."""

Train = Callable[[], Awaitable[TrainingReport]]
OnModel = Callable[[ServingModel | None], Awaitable[None]]

_log = logging.getLogger(__name__)


class Supervisor:
    """Starts trainings and hands new versions to the predictor.

    Args:
        registry: the versions.
        rows: the rows to train on.
        train: runs one training; raises `TrainerFailed` if it fails.
        cadence: when to train.
        on_model: serves a version, or none (None). If it raises, the version before goes on serving.
        clock: source of the time.

    Attributes:
        counts: events: "started:<reason>", the outcomes of `TrainingReport`, "failed", "loaded", "load_failed",
            "database_away".
        served: the version that was handed over last.
        report: of the last training that returned one.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        rows: TrainingRows,
        train: Train,
        cadence: Cadence,
        *,
        on_model: OnModel,
        clock: Clock,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.served: ModelInfo | None = None
        self.report: TrainingReport | None = None
        self._registry = registry
        self._rows = rows
        self._train = train
        self._cadence = cadence
        self._on_model = on_model
        self._clock = clock
        self._drift = DriftDetector()
        self._refused: int | None = None
        self._failures = 0
        self._attempt_at_s: float | None = None
        self._training: asyncio.Task[None] | None = None

    def learn_one(self, predicted_tokens: float, actual_tokens: float) -> None:
        """Record a prediction (median) and the actual tokens, per sequence, for drift detection."""
        self._drift.learn_one(predicted_tokens, actual_tokens)

    async def run(self) -> None:
        """Train and load models until cancelled; cancelling also ends a running training."""
        try:
            while True:
                try:
                    await self.load_serving()
                    await self._train_if_due()
                except DATABASE_ERRORS as error:
                    self.counts["database_away"] += 1
                    _log.debug("The database is unavailable, so no model is trained or loaded: %s", error)
                await self._pause()
        finally:
            if self._training is not None:
                self._training.cancel()
                await asyncio.gather(self._training, return_exceptions=True)

    async def load_serving(self) -> None:
        """Hand the serving version to the predictor, if it has changed."""
        version = await self._registry.serving_version(self._rows.features_version)
        if version == (self.served.version if self.served else None) or (version and version == self._refused):
            return
        model = await self._registry.serving(self._rows.features_version)
        try:
            await self._on_model(model)
        except Exception:  # noqa: BLE001 - a broken model must not stop the older one
            self.counts["load_failed"] += 1
            self._refused = version
            _log.exception(
                "Version %s of the length model cannot be loaded; the version before it still serves", version
            )
            return
        self.counts["loaded"] += 1
        self.served = model.info if model else None
        self._drift = DriftDetector()
        _log.info("Version %s of the length model serves now", version)

    async def _train_if_due(self) -> None:
        if self._training is not None:
            return
        reason = reason_to_train(self._cadence, await self._situation())
        if reason is not None:
            self._attempt_at_s = self._clock.monotonic()
            self._training = asyncio.create_task(self._run_training(reason), name="training")

    async def _situation(self) -> Situation:
        newest = await self._registry.newest(self._rows.features_version)
        new_rows = await self._rows.count(
            since=newest.window_end if newest else None, limit=max(self._cadence.after_rows, self._cadence.min_rows)
        )
        attempt = self._attempt_at_s
        return Situation(
            since_training_s=(self._clock.now() - newest.created_at).total_seconds() if newest else None,
            since_attempt_s=None if attempt is None else self._clock.monotonic() - attempt,
            failures=self._failures,
            new_rows=new_rows,
            drifted=self._drift.drifted,
        )

    async def _run_training(self, reason: Reason) -> None:
        self.counts[f"started:{reason}"] += 1
        _log.info("Training a length model (%s)", reason)
        try:
            self.report = await self._train()
        except (TrainerFailed, OSError) as error:
            self._failures += 1
            self.counts["failed"] += 1
            _log.warning("The training failed; the gateway serves as before: %s", error)
            return
        self.counts[self.report.outcome] += 1
        # A training without a new version would be due again at once, so it counts as a failure.
        self._failures = 0 if self.report.version is not None else self._failures + 1
        self._drift = DriftDetector()
        _log.info("Training: %s", self.report)

    async def _pause(self) -> None:
        """Wait for the next poll, or until a training ends."""
        if self._training is None:
            await asyncio.sleep(POLL_S)
            return
        done, _ = await asyncio.wait({self._training}, timeout=POLL_S)
        if done:
            self._training = None
