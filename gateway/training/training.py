"""One training: read the newest rows from Postgres, fit a model to the older ones, and compare it on the newest ones.

The model is written only when it is complete; a training that is killed right after that leaves a challenger that never
serves. A lock in Postgres, which ends with its connection, lets only one training run at a time.
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
from gateway.training.comparison import (
    MIN_JUDGED,
    Candidate,
    anchor_candidate,
    history_candidate,
    is_better,
    model_candidate,
    split_holdout,
    strongest,
)
from gateway.training.process import TrainingOrder, TrainingReport
from gateway.training.registry import ModelRegistry, NewModel, ServingModel
from gateway.training.window import TrainingRows, Window

_log = logging.getLogger(__name__)

_ADVISORY_LOCK = 0x747261696E


async def train(engine: AsyncEngine, order: TrainingOrder) -> TrainingReport:
    """Train once, and let the new model serve if it is better than the present one.

    Raises:
        SQLAlchemyError: Postgres is unavailable; nothing has changed.
    """
    async with _training_lock(engine) as locked:
        if not locked:
            return TrainingReport(outcome="busy")
        return await _Training(engine, order).run()


@asynccontextmanager
async def _training_lock(engine: AsyncEngine) -> AsyncIterator[bool]:
    """Take the training lock if it is free, and yield whether it was; no transaction stays open."""
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
        fit, held_out = split_holdout(window)
        if len(window) < self._order.min_rows or len(fit) < MIN_ROWS:
            return self._too_few(window, max(self._order.min_rows, MIN_ROWS + len(held_out)))
        serving = await self._registry.serving(self._order.features_version)
        judge = held_out if serving is None else held_out.after(serving.info.fitted_until.timestamp())
        if len(judge) < MIN_JUDGED:
            return self._too_few(window, len(window) + MIN_JUDGED - len(judge))
        fitted = fit_predictor(TrainingSet(fit.features, fit.tokens, fit.apps), self._untrained())
        challenger = model_candidate("challenger", fitted, held_out, judge)
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
    """Return the candidates that a new model has to beat: the model that serves, or both predictions from history.

    The stored predictions from history count only if there are enough of them.
    """
    if serving is not None and (fitted := _loaded(serving)) is not None:
        unseen = window.after(serving.info.fitted_until.timestamp())
        return [model_candidate(f"version {serving.info.version}", fitted, unseen, judge)]
    history = history_candidate(judge)
    return [anchor_candidate(window, judge), *([history] if history.known.sum() >= MIN_JUDGED else [])]


def _loaded(serving: ServingModel) -> FittedPredictor | None:
    try:
        return FittedPredictor.from_bytes(serving.artifact)
    except ValueError as error:
        _log.warning(
            "Version %d cannot be loaded, so the new model is not compared with it: %s", serving.info.version, error
        )
        return None
