import asyncio
from datetime import UTC, date, datetime, timedelta

from gateway.storage.partitions import drop_expired, ensure_partitions, maintain, partition_name, partitioned_days
from gateway.storage.repository import Repository

TODAY = date(2025, 3, 1)
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


async def test_partitions_are_created_ahead_once(engine):
    for _ in range(2):
        await maintain(engine, today=TODAY, keep_days=None, ahead_days=2)
    async with engine.connect() as connection:
        assert await partitioned_days(connection) == {date(2025, 3, 1), date(2025, 3, 2), date(2025, 3, 3)}


async def test_retention_drops_days_older_than_keep_days(engine, repository, a_record, rows):
    await repository.write([a_record(arrived_at=NOON - timedelta(days=days)) for days in range(10)])
    assert await maintain(engine, today=TODAY, keep_days=3) == 6
    assert await rows("SELECT min(arrived_at), count(*) FROM requests") == [(NOON - timedelta(days=3), 4)]


async def test_a_late_record_of_a_dropped_day_is_kept_until_the_next_retention(engine, repository, a_record, rows):
    early = a_record(arrived_at=NOON - timedelta(days=9))
    await repository.write([early])
    await drop_expired(engine, TODAY)
    await repository.write([early])
    assert await rows("SELECT count(*) FROM requests_default") == [(1,)]
    await drop_expired(engine, TODAY)
    assert await rows("SELECT count(*) FROM requests") == [(0,)]


async def test_rows_that_arrived_before_their_partition_move_into_it(engine, repository, a_record, rows):
    await repository.write([a_record()])
    await drop_expired(engine, TODAY + timedelta(days=1))
    await repository.write([a_record(), a_record(arrived_at=NOON + timedelta(days=1))])
    async with engine.begin() as connection:
        await ensure_partitions(connection, [TODAY])
    assert await rows(f"SELECT count(*) FROM {partition_name(TODAY)}") == [(1,)]
    assert await rows("SELECT count(*) FROM requests") == [(2,)]


async def test_two_gateways_can_create_a_partition_at_the_same_time(engine, a_record, rows):
    await asyncio.gather(*(Repository(engine).write([a_record(user=f"user-{index}")]) for index in range(5)))
    assert await rows("SELECT count(*) FROM requests_20250301") == [(5,)]
