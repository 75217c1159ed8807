import asyncio

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from gateway.errors import UnknownVersion
from gateway.storage.tables import length_models
from gateway.training.registry import KEPT_NEWEST

FEATURES, OTHER_FEATURES = "1:off", "1:static"


async def statuses(registry) -> dict[int, str]:
    return {model.version: model.status for model in await registry.list()}


async def test_a_challenger_serves_only_once_promoted(registry, a_model):
    version = await registry.add_challenger(a_model())
    assert await registry.serving(FEATURES) is None
    assert await registry.serving_version(FEATURES) is None
    await registry.promote(version)
    serving = await registry.serving(FEATURES)
    assert (serving.info.version, serving.artifact, serving.info.metrics) == (version, b"\0model", {"mae": 12.5})
    assert serving.info.served_at is not None
    assert await registry.serving_version(FEATURES) == version


async def test_promotion_retires_the_one_before(registry, a_model):
    first, second = [await registry.add_challenger(a_model()) for _ in range(2)]
    await registry.promote(first)
    await registry.promote(second)
    assert await statuses(registry) == {second: "serving", first: "retired"}
    await registry.promote(second)
    assert await statuses(registry) == {second: "serving", first: "retired"}


async def test_a_rejected_challenger_never_served(registry, a_model):
    first, second = [await registry.add_challenger(a_model()) for _ in range(2)]
    await registry.promote(first)
    await registry.reject(second)
    await registry.reject(first)  # it is no longer a challenger
    assert await statuses(registry) == {second: "rejected", first: "serving"}


async def test_rollback_goes_back_step_by_step_to_history_alone(registry, a_model):
    versions = [await registry.add_challenger(a_model()) for _ in range(3)]
    for version in versions:
        await registry.promote(version)
    assert await registry.rollback() == versions[1]
    assert await registry.rollback() == versions[0]
    assert await registry.rollback() is None
    assert await registry.serving(FEATURES) is None
    assert set((await statuses(registry)).values()) == {"rejected"}
    with pytest.raises(UnknownVersion):
        await registry.rollback()


async def test_a_version_that_was_rolled_back_can_be_promoted_again(registry, a_model):
    first, second = [await registry.add_challenger(a_model()) for _ in range(2)]
    for version in (first, second):
        await registry.promote(version)
    await registry.rollback()
    await registry.promote(second)
    assert await registry.rollback() == first


async def test_an_unknown_version_changes_nothing(registry, a_model):
    version = await registry.add_challenger(a_model())
    await registry.promote(version)
    with pytest.raises(UnknownVersion, match="99"):
        await registry.promote(99)
    assert await statuses(registry) == {version: "serving"}


async def test_concurrent_promotions_leave_one_serving(registry, a_model):
    versions = [await registry.add_challenger(a_model()) for _ in range(4)]
    await asyncio.gather(*(registry.promote(version) for version in versions))
    assert sorted((await statuses(registry)).values()) == ["retired", "retired", "retired", "serving"]


async def test_the_database_itself_lets_only_one_serve(registry, a_model, engine):
    for _ in range(2):
        await registry.add_challenger(a_model())
    with pytest.raises(IntegrityError):
        async with engine.begin() as connection:
            await connection.execute(update(length_models).values(status="serving"))


async def test_a_model_of_another_features_version_does_not_serve(registry, a_model):
    await registry.promote(await registry.add_challenger(a_model()))
    assert await registry.serving(OTHER_FEATURES) is None
    assert await registry.serving_version(OTHER_FEATURES) is None
    assert await registry.newest(OTHER_FEATURES) is None
    assert (await registry.newest(FEATURES)).status == "serving"


async def test_old_versions_are_deleted_except_those_that_served_last(registry, a_model):
    first, second = [await registry.add_challenger(a_model()) for _ in range(2)]
    for version in (first, second):
        await registry.promote(version)
    for _ in range(KEPT_NEWEST + 5):
        await registry.reject(await registry.add_challenger(a_model()))
    kept = await statuses(registry)
    assert (kept[first], kept[second]) == ("retired", "serving")
    assert len(kept) == KEPT_NEWEST + 2
