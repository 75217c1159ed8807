"""Keeps the gateway's model young: starts the trainer when it is due, and takes up whatever version serves.

The trainer is a process of its own, so that its crash is a line in the log, and its work somebody else's time slices.
What it leaves behind is a row in Postgres; each gateway on that database finds it there, as it finds what
`magnus predictor` changes.
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
"""How often the registry is asked; so long an older version may serve on."""

Train = Callable[[], Awaitable[TrainingReport]]
OnModel = Callable[[ServingModel | None], Awaitable[None]]

_log = logging.getLogger(__name__)


class Supervisor:
    """Trains on time and hands new versions over.

    Args:
        registry: the versions.
        rows: counts what there is to learn from.
        train: runs one training; raises `TrainerFailed` where it comes to nothing.
        cadence: when one is due.
        on_model: takes the version that serves, or None when none does; may take its time, and may raise: then the one
            before it goes on serving.
        clock: where times come from.

    Attributes:
        counts: what has come of it: "started:<reason>", the outcomes of `TrainingReport`, "failed", "loaded",
            "load_failed", "database_away".
        served: the version handed over last.
        report: of the last training that gave one.
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
        """Note how good a prediction (median) was, in tokens per sequence: drift is seen by it."""
        self._drift.learn_one(predicted_tokens, actual_tokens)

    async def run(self) -> None:
        """Look after the model; ends by being cancelled, and a running trainer with it."""
        try:
            while True:
                try:
                    await self.take_up()
                    await self._train_if_due()
                except DATABASE_ERRORS as error:
                    self.counts["database_away"] += 1
                    _log.debug("The models cannot be looked after now: %s", error)
                await self._pause()
        finally:
            if self._training is not None:
                self._training.cancel()
                await asyncio.gather(self._training, return_exceptions=True)

    async def take_up(self) -> None:
        """Hand over the version that serves, if it is another than the last one."""
        version = await self._registry.serving_version(self._rows.features_version)
        if version == (self.served.version if self.served else None) or (version and version == self._refused):
            return
        model = await self._registry.serving(self._rows.features_version)
        try:
            await self._on_model(model)
        except Exception:  # noqa: BLE001  whatever an artifact does to its reader, the older model goes on serving
            self.counts["load_failed"] += 1
            self._refused = version
            _log.exception("Version %s of the length model cannot be loaded; the one before it goes on", version)
            return
        self.counts["loaded"] += 1
        self.served = model.info if model else None
        self._drift = DriftDetector()
        _log.info("The length model is version %s now", version)

    async def _train_if_due(self) -> None:
        if self._training is not None:
            return
        reason = reason_to_train(self._cadence, await self._situation())
        if reason is not None:
            self._attempt_at_s = self._clock.monotonic()
            self._training = asyncio.create_task(self._oversee(reason), name="training")

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

    async def _oversee(self, reason: Reason) -> None:
        self.counts[f"started:{reason}"] += 1
        _log.info("Training a length model (%s)", reason)
        try:
            self.report = await self._train()
        except (TrainerFailed, OSError) as error:
            self._failures += 1
            self.counts["failed"] += 1
            _log.warning("The training failed, nothing else has: %s", error)
            return
        self.counts[self.report.outcome] += 1
        # What leaves no version behind would be due again at once.
        self._failures = 0 if self.report.version is not None else self._failures + 1
        self._drift = DriftDetector()
        _log.info("Training: %s", self.report)

    async def _pause(self) -> None:
        """Wait for the next look, no longer than until a training ends."""
        if self._training is None:
            await asyncio.sleep(POLL_S)
            return
        done, _ = await asyncio.wait({self._training}, timeout=POLL_S)
        if done:
            self._training = None
