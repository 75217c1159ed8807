"""One training: the newest rows from Postgres, a model fitted to all but the last of them, a contest on those.

Nothing is written before the model is there; killed right after that, it leaves a challenger that never serves. A lock
in Postgres, which goes with its connection, keeps two from training at once.
"""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.prediction.features import N_FEATURES
from gateway.prediction.fitting import MIN_ROWS, FittedPredictor, TrainingSet, fit_predictor
from gateway.prediction.length_model import LengthModel
from gateway.training.candidates import anchored, predicted, remembered
from gateway.training.comparison import MIN_JUDGED, Candidate, is_better, split, strongest
from gateway.training.registry import ModelRegistry, NewModel, ServingModel
from gateway.training.report import TrainingOrder, TrainingReport
from gateway.training.window import TrainingRows, Window

_log = logging.getLogger(__name__)

_ADVISORY_LOCK = 0x747261696E


async def train(engine: AsyncEngine, order: TrainingOrder) -> TrainingReport:
    """Train once, and let the new model serve if it is better than what does.

    Raises:
        SQLAlchemyError: Postgres is away; nothing has changed.
    """
    async with _only_one(engine) as is_only_one:
        if not is_only_one:
            return TrainingReport(outcome="busy")
        return await _Training(engine, order).run()


@asynccontextmanager
async def _only_one(engine: AsyncEngine) -> AsyncIterator[bool]:
    """Hold the lock that one training has at a time, if it is free; no transaction stays open meanwhile."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        locked = bool(await connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _ADVISORY_LOCK}))
        try:
            yield locked
        finally:
            if locked:
                await connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK})


class _Training:
    def __init__(self, engine: AsyncEngine, order: TrainingOrder) -> None:
        self._registry = ModelRegistry(engine)
        self._rows = TrainingRows(engine, features_version=order.features_version, n_features=N_FEATURES)
        self._order = order
        self._start_s = time.monotonic()

    async def run(self) -> TrainingReport:
        window = await self._rows.newest(self._order.window_rows)
        fit, held_out = split(window)
        if len(window) < self._order.min_rows or len(fit) < MIN_ROWS:
            return self._too_few(window, max(self._order.min_rows, MIN_ROWS + len(held_out)))
        serving = await self._registry.serving(self._order.features_version)
        judge = held_out if serving is None else held_out.after(serving.info.fitted_until.timestamp())
        if len(judge) < MIN_JUDGED:
            return self._too_few(window, len(window) + MIN_JUDGED - len(judge))
        fitted = fit_predictor(TrainingSet(fit.features, fit.tokens, fit.apps), self._untrained())
        challenger = predicted("challenger", fitted, held_out, judge)
        champion = strongest(_champions(serving, window, judge), challenger, judge.tokens)
        return await self._settle(fitted, challenger, champion, window, fit, judge)

    async def _settle(
        self,
        fitted: FittedPredictor,
        challenger: Candidate,
        champion: Candidate,
        window: Window,
        fit: Window,
        judge: Window,
    ) -> TrainingReport:
        better = is_better(challenger, champion, judge.tokens)
        metrics = challenger.metrics(judge.tokens)
        version = await self._registry.add_challenger(
            NewModel(
                rows=len(fit),
                window_start=window.start,
                window_end=window.end,
                fitted_until=fit.end,
                features_version=self._order.features_version,
                metrics=metrics,
                artifact=fitted.to_bytes(),
            )
        )
        await (self._registry.promote(version) if better else self._registry.reject(version))
        return TrainingReport(
            outcome="promoted" if better else "rejected",
            rows=len(window),
            version=version,
            against=champion.name,
            metrics=metrics,
            champion=champion.metrics(judge.tokens),
            seconds=self._elapsed_s(),
        )

    def _untrained(self) -> LengthModel:
        return LengthModel(thread_count=self._order.threads)

    def _too_few(self, window: Window, needed: int) -> TrainingReport:
        return TrainingReport(outcome="too_few_rows", rows=len(window), needed=needed, seconds=self._elapsed_s())

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._start_s, 3)


def _champions(serving: ServingModel | None, window: Window, judge: Window) -> list[Candidate]:
    """Give all that a new model has to beat: what serves, be it a model or history.

    What history had predicted is a champion only where a model does not serve, and enough of it was stored.
    """
    if serving is not None and (fitted := _loaded(serving)) is not None:
        unseen = window.after(serving.info.fitted_until.timestamp())
        return [predicted(f"version {serving.info.version}", fitted, unseen, judge)]
    history = remembered(judge)
    return [anchored(window, judge), *([history] if history.known.sum() >= MIN_JUDGED else [])]


def _loaded(serving: ServingModel) -> FittedPredictor | None:
    try:
        return FittedPredictor.from_bytes(serving.artifact)
    except ValueError as error:
        _log.warning("Version %d cannot be loaded, so it is no champion: %s", serving.info.version, error)
        return None
