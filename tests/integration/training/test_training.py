import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import msgspec
import numpy as np
import pytest
from sqlalchemy import text

from gateway.clock import SystemClock
from gateway.errors import TrainerFailed
from gateway.prediction.embedder import NoEmbedder
from gateway.prediction.features import N_FEATURES, features_version
from gateway.prediction.fitting import FittedPredictor, fit_predictor
from gateway.training import supervisor as supervision
from gateway.training import training
from gateway.training.corpus import survey
from gateway.training.importing import ImportRules, import_corpus
from gateway.training.process import TRAINER, TrainerProcess, TrainingOrder
from gateway.training.schedule import Cadence
from gateway.training.supervisor import Supervisor
from gateway.training.trainer import ORPHANED
from gateway.training.training import train
from gateway.training.window import TrainingRows
from tests.polling import until

LAYOUT = features_version(NoEmbedder())
N_ROWS = 400


@pytest.fixture
def order(database_url) -> TrainingOrder:
    return TrainingOrder(database_url=database_url, features_version=LAYOUT, window_rows=5000, min_rows=300)


@pytest.fixture
def answered(engine, tmp_path) -> Callable[[int], Awaitable[None]]:
    """Returns a function that imports requests whose words, not their history, determine the length of the answer."""
    draw = random.Random(5)

    def row() -> dict[str, object]:
        wants_a_list = draw.random() < 0.5
        words = " ".join(["item"] * draw.randint(5, 15))
        prompt = f"Please list several examples of {words}" if wants_a_list else f"Please say what is {words}"
        tokens = round((500 if wants_a_list else 20) * draw.lognormvariate(0, 0.1))
        return {"app": "chat", "model": "llama", "prompt": prompt, "output_tokens": tokens}

    async def write(count: int) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row()) + "\n" for _ in range(count)))
        rules = ImportRules(now=datetime.now(UTC), keep_days=90, store_prompts=False, app_of=str)
        await import_corpus(engine, survey([path]), NoEmbedder(), rules, lambda _: None)

    return write


async def started(order: TrainingOrder) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*TRAINER, stdin=pipe, stdout=pipe)
    process.stdin.write(msgspec.json.encode(order) + b"\n")
    await process.stdin.drain()
    return process


async def until_training(engine, *, locked: bool = True) -> None:
    """Wait until a training holds its lock, or until none does."""
    held = text(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database"
        " WHERE locktype = 'advisory' AND datname = current_database())"
    )
    async with engine.connect() as connection, asyncio.timeout(60):
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        while await connection.scalar(held) is not locked:  # noqa: ASYNC110 - another process sets no event here
            await asyncio.sleep(0.02)


async def test_the_first_model_serves_once_it_beats_history(engine, registry, order, answered):
    await answered(N_ROWS)
    report = await train(engine, order)
    assert report.outcome == "promoted"
    assert report.against in {"history", "history's expectation"}
    assert report.metrics["mae"] < report.champion["mae"] / 2
    serving = await registry.serving(LAYOUT)
    assert (serving.info.version, serving.info.metrics) == (report.version, report.metrics)
    assert serving.info.window_start < serving.info.fitted_until < serving.info.window_end
    assert FittedPredictor.from_bytes(serving.artifact).model.feature_importances()


async def test_rows_that_arrived_all_at_once_can_be_trained_on(engine, order, answered):
    await answered(N_ROWS)
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE requests SET arrived_at = '2025-03-01 12:00+00'"))
    assert (await train(engine, order)).outcome == "promoted"
    assert (await train(engine, order)).outcome == "too_few_rows"  # the champion may have been fitted to any of them


async def test_too_few_rows_are_reported_and_write_nothing(engine, registry, order, answered):
    await answered(order.min_rows - 1)
    report = await train(engine, order)
    assert (report.outcome, report.rows, report.needed) == ("too_few_rows", order.min_rows - 1, order.min_rows)
    assert await registry.list() == []


async def test_a_model_that_is_worse_than_the_champion_is_rejected(engine, registry, order, answered, monkeypatch):
    await answered(N_ROWS)
    champion = await train(engine, order)

    def fit_badly(rows, model):
        tokens = np.random.default_rng(1).permutation(rows.tokens)
        return fit_predictor(type(rows)(rows.X, tokens, rows.apps), model)

    monkeypatch.setattr(training, "fit_predictor", fit_badly)
    await answered(N_ROWS)
    report = await train(engine, order)
    assert (report.outcome, report.against) == ("rejected", f"version {champion.version}")
    assert await registry.serving_version(LAYOUT) == champion.version
    assert [model.status for model in await registry.list()] == ["rejected", "serving"]


async def test_without_new_rows_the_champion_is_not_compared(engine, registry, order, answered, a_model):
    await answered(N_ROWS)
    now = datetime.now(UTC)
    await registry.promote(await registry.add_challenger(a_model(features_version=LAYOUT, fitted_until=now)))
    report = await train(engine, order)
    assert report.outcome == "too_few_rows"
    assert report.needed > report.rows == N_ROWS


async def test_a_champion_that_cannot_be_loaded_is_not_compared(engine, registry, order, answered, a_model, caplog):
    broken = await registry.add_challenger(a_model(features_version=LAYOUT, artifact=b"broken"))
    await registry.promote(broken)
    await answered(N_ROWS)
    report = await train(engine, order)
    assert report.outcome == "promoted"
    assert f"Version {broken} cannot be loaded" in caplog.text


async def test_only_one_trains_at_a_time(engine, order, answered):
    await answered(N_ROWS)
    reports = await asyncio.gather(train(engine, order), train(engine, order))
    assert sorted(report.outcome for report in reports) == ["busy", "promoted"]


async def test_a_killed_trainer_changes_nothing(engine, registry, order, answered):
    await answered(N_ROWS)
    process = await started(order)
    await until_training(engine)
    process.kill()
    await process.wait()
    await until_training(engine, locked=False)
    assert await registry.list() == []
    report = await TrainerProcess(order).run()
    assert report.outcome == "promoted"


async def test_a_trainer_ends_with_its_parent(engine, registry, order, answered):
    await answered(N_ROWS)
    process = await started(order)
    await until_training(engine)
    process.stdin.close()
    async with asyncio.timeout(10):
        assert await process.wait() == ORPHANED
    assert await registry.list() == []


async def test_a_database_that_is_away_is_a_failed_training(order, tmp_path):
    away = msgspec.structs.replace(order, database_url=f"postgresql+asyncpg://postgres@/magnus?host={tmp_path}")
    with pytest.raises(TrainerFailed, match="status 1"):
        await TrainerProcess(away).run()


async def test_the_gateway_serves_the_first_model_after_its_training(engine, registry, order, answered, monkeypatch):
    monkeypatch.setattr(supervision, "POLL_S", 0.1)
    served = asyncio.Queue()

    async def take(model) -> None:
        await served.put(await asyncio.to_thread(FittedPredictor.from_bytes, model.artifact))

    await answered(N_ROWS)
    rows = TrainingRows(engine, features_version=LAYOUT, n_features=N_FEATURES)
    cadence = Cadence(every_s=3600, after_rows=10_000, min_rows=order.min_rows)
    train = TrainerProcess(order).run
    supervisor = Supervisor(registry, rows, train, cadence, on_model=take, clock=SystemClock())
    task = asyncio.create_task(supervisor.run())
    fitted = await asyncio.wait_for(served.get(), 60)
    await until(lambda: supervisor.counts["promoted"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert fitted.model.predict(np.zeros((1, N_FEATURES), np.float32)).shape == (1, 6)
    assert supervisor.counts == {"started:first": 1, "promoted": 1, "loaded": 1}
