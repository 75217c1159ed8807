import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.clock import SystemClock
from gateway.errors import TrainerFailed
from gateway.training import supervisor as supervision
from gateway.training.process import TrainingReport
from gateway.training.schedule import Cadence
from gateway.training.supervisor import Supervisor
from tests.polling import until

CADENCE = Cadence(every_s=3600.0, after_rows=1000, min_rows=10)


class Serving:
    """Records the versions that a gateway would serve."""

    def __init__(self) -> None:
        self.artifacts: list[bytes | None] = []

    async def serve(self, model) -> None:
        if model is not None and model.artifact == b"broken":
            raise ValueError("this is no model")
        self.artifacts.append(model and model.artifact)


@pytest.fixture
def serving() -> Serving:
    return Serving()


@pytest.fixture
def supervised(registry, rows, serving, monkeypatch):
    """Runs a supervisor that polls often."""
    monkeypatch.setattr(supervision, "POLL_S", 0.01)

    @asynccontextmanager
    async def run(train):
        supervisor = Supervisor(registry, rows, train, CADENCE, on_model=serving.serve, clock=SystemClock())
        task = asyncio.create_task(supervisor.run())
        yield supervisor
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    return run


async def no_training() -> TrainingReport:
    raise AssertionError("nothing is due")


async def test_promoted_and_rolled_back_versions_are_handed_over(supervised, serving, registry, a_model):
    first, second = [await registry.add_challenger(a_model(artifact=name)) for name in (b"one", b"two")]
    await registry.promote(first)
    async with supervised(no_training) as supervisor:
        await until(lambda: serving.artifacts == [b"one"])
        await registry.promote(second)
        await until(lambda: serving.artifacts == [b"one", b"two"])
        await registry.rollback()
        await registry.rollback()
        await until(lambda: serving.artifacts[-1] is None)
        assert supervisor.served is None
        assert supervisor.counts["loaded"] == len(serving.artifacts)


async def test_a_broken_artifact_is_counted_once_and_the_one_before_serves_on(
    supervised, serving, registry, a_model, caplog
):
    good, broken, better = [
        await registry.add_challenger(a_model(artifact=name)) for name in (b"good", b"broken", b"better")
    ]
    await registry.promote(good)
    async with supervised(no_training) as supervisor:
        await until(lambda: serving.artifacts == [b"good"])
        await registry.promote(broken)
        await until(lambda: supervisor.counts["load_failed"])
        await asyncio.sleep(0.05)
        assert supervisor.counts["load_failed"] == 1
        assert supervisor.served.version == good
        await registry.promote(better)
        await until(lambda: serving.artifacts == [b"good", b"better"])
    assert "cannot be loaded" in caplog.text


async def test_enough_rows_start_a_training_whose_model_serves(
    supervised, serving, registry, repository, a_model, a_record
):
    async def train() -> TrainingReport:
        version = await registry.add_challenger(a_model(artifact=b"trained"))
        await registry.promote(version)
        return TrainingReport(outcome="promoted", version=version)

    async with supervised(train) as supervisor:
        await repository.write([a_record(number) for number in range(CADENCE.min_rows)])
        await until(lambda: serving.artifacts == [b"trained"])
        await until(lambda: supervisor.counts["promoted"])
        assert supervisor.counts["started:first"] == 1
        assert supervisor.report.outcome == "promoted"


async def test_drift_starts_a_training(supervised, serving, registry, repository, a_model, a_record):
    async def train() -> TrainingReport:
        return TrainingReport(outcome="rejected", version=await registry.add_challenger(a_model()))

    await registry.promote(await registry.add_challenger(a_model()))
    await repository.write([a_record(3600 * 3 + number) for number in range(5)])
    async with supervised(train) as supervisor:
        await until(lambda: serving.artifacts)
        for number in range(600):
            supervisor.learn_one(100.0, 120.0 if number < 300 else 900.0)
        await until(lambda: supervisor.counts["rejected"])
        assert supervisor.counts["started:drift"] == 1


async def test_a_failed_training_is_counted_and_not_repeated_at_once(supervised, repository, a_record):
    async def train() -> TrainingReport:
        raise TrainerFailed("killed")

    await repository.write([a_record(number) for number in range(CADENCE.min_rows)])
    async with supervised(train) as supervisor:
        await until(lambda: supervisor.counts["failed"])
        await asyncio.sleep(0.1)
        assert supervisor.counts["failed"] == 1


async def test_stopping_cancels_the_training(supervised, repository, a_record):
    ended = asyncio.Event()

    async def train() -> TrainingReport:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        raise AssertionError

    await repository.write([a_record(number) for number in range(CADENCE.min_rows)])
    async with supervised(train) as supervisor:
        await until(lambda: supervisor.counts["started:first"])
    assert ended.is_set()


async def test_an_unavailable_database_does_not_end_the_supervisor(supervised, serving, registry, engine, monkeypatch):
    async def away(_: int) -> int:
        raise OSError("no route")

    monkeypatch.setattr(registry, "serving_version", away)
    async with supervised(no_training) as supervisor:
        await until(lambda: supervisor.counts["database_away"] > 2)
