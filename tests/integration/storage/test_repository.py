import struct
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from gateway.errors import DatabaseUnavailable, RecordsRefused
from gateway.storage.database import create_database_engine
from gateway.storage.repository import Repository

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


async def test_every_field_of_a_record_is_stored(repository, a_record, rows):
    arrived_at = datetime(2025, 3, 1, 23, 59, 59, 999_999, tzinfo=UTC)
    record = a_record(
        arrived_at=arrived_at,
        user="übel's \\ user",
        backend="gpu-0",
        error_code="x",
        finish_reason="stop",
        sequences=2,
        max_tokens=9,
        predicted_tokens=48,
        predicted_p90_tokens=90,
        prediction_source="model",
        queue_ms=0.1,
        ttft_ms=12.5,
        e2e_ms=1e3,
        prompt='a "prompt"\n😀',
        features=bytes(range(256)),
        features_version="3:static",
        template="c0ffee",
    )
    assert await repository.write([record]) == 1
    [row] = await rows(
        "SELECT requests.id::text, request_id, arrived_at, applications.name, end_users.name, model, route, stream,"
        " status, http_status, backend, error_code, finish_reason, sequences, prompt_bytes, max_tokens, input_tokens,"
        " output_tokens, predicted_tokens, predicted_p90_tokens, prediction_source, queue_ms, ttft_ms, e2e_ms, prompt,"
        " features, features_version, template"
        " FROM requests"
        " JOIN applications ON application_id = applications.id JOIN end_users ON end_user_id = end_users.id"
    )
    assert row == tuple(getattr(record, field) for field in record.__struct_fields__)


async def test_writing_again_changes_nothing(repository, a_record, rows):
    batch = [a_record(user=f"user-{index % 7}") for index in range(100)]
    assert await repository.write(batch) == 100
    assert await repository.write([*batch, a_record()]) == 1
    assert await rows("SELECT count(*) FROM requests") == [(101,)]
    assert await rows("SELECT count(*) FROM end_users") == [(8,)]


async def test_same_user_name_in_two_applications_is_two_users(repository, a_record, rows):
    await repository.write([a_record(app="one"), a_record(app="two"), a_record(app="two", user=None)])
    assert await rows("SELECT count(*) FROM end_users") == [(2,)]
    assert await rows("SELECT count(*) FROM requests WHERE end_user_id IS NULL") == [(1,)]


async def test_a_batch_creates_the_partitions_of_its_days(repository, a_record, rows):
    await repository.write([a_record(arrived_at=NOON + timedelta(days=days)) for days in (0, 1, 40)])
    assert await rows("SELECT count(*) FROM requests_default") == [(0,)]
    assert await rows("SELECT count(*) FROM requests_20250410") == [(1,)]


@pytest.mark.parametrize(
    "poison",
    [
        {"template": "a\0b"},
        {"prediction_source": "half a pair: \ud800"},
        {"id": "not a uuid"},
        {"output_tokens": 2**63},
        {"arrived_at": datetime.max.replace(tzinfo=UTC)},
    ],
)
async def test_a_record_that_postgres_never_accepts_is_refused(repository, a_record, rows, poison):
    with pytest.raises(RecordsRefused):
        await repository.write([a_record(), a_record(**poison)])
    assert await rows("SELECT count(*) FROM requests") == [(0,)]


async def test_missing_tables_are_an_unavailable_database(empty_database_url):
    engine = create_database_engine(empty_database_url)
    with pytest.raises(DatabaseUnavailable):
        await Repository(engine).probe()
    await engine.dispose()


async def test_missing_server_is_an_unavailable_database(tmp_path, a_record):
    engine = create_database_engine(f"postgresql+asyncpg://postgres@/magnus?host={tmp_path}")
    with pytest.raises(DatabaseUnavailable):
        await Repository(engine).write([a_record()])
    await engine.dispose()


async def test_probe_stores_nothing(repository, a_record, rows):
    await repository.write([a_record()])
    await repository.probe()
    assert await rows("SELECT count(*) FROM requests") == [(1,)]
    assert await rows("SELECT name FROM applications") == [("translate",)]


async def test_rows_are_written_where_their_partition_cannot_be_created(repository, a_record, rows, engine):
    async with engine.begin() as connection:
        await connection.execute(text("CREATE VIEW requests_20250301 AS SELECT 1 AS one"))
    assert await repository.write([a_record(arrived_at=NOON)]) == 1
    assert await rows("SELECT count(*) FROM requests_default") == [(1,)]


async def answered(repository, *, feature=1, limit=100):
    chunks = repository.answered_requests(features_versions="1:%", feature=feature, limit=limit)
    return [row async for rows in chunks for row in rows]


async def test_answered_requests_are_the_newest_complete_ones_in_their_order(repository, a_record):
    second = timedelta(seconds=1)
    await repository.write(
        [
            a_record(arrived_at=NOON, output_tokens=20, sequences=4, finish_reason="length", input_tokens=None),
            a_record(arrived_at=NOON + second, output_tokens=7, user=None, template="0123", finish_reason="stop"),
            a_record(arrived_at=NOON + 2 * second, output_tokens=1, status="cancelled"),
            a_record(arrived_at=NOON + 3 * second, output_tokens=0),
            a_record(arrived_at=NOON - timedelta(days=1), output_tokens=1),
        ]
    )
    found = await answered(repository, limit=2)
    assert [(row.user, row.tokens, row.sequences, row.cut) for row in found] == [
        ("ann", 5.0, 4, True),
        (None, 7.0, 1, False),
    ]
    assert [row.template for row in found] == [None, "0123"]
    assert found[0].input_tokens is None
    assert [row.tokens for row in await answered(repository)] == [1.0, 5.0, 7.0]


async def test_one_feature_of_an_answered_request_is_read_if_its_version_fits(repository, a_record):
    vector = struct.pack("<3f", 1.0, 2.5, 3.0)
    for version, features in [("1:static", vector), ("2:static", vector), ("1:off", vector[:5]), (None, None)]:
        await repository.write([a_record(features=features, features_version=version)])
    assert {row.feature for row in await answered(repository)} == {struct.pack("<f", 2.5), None}
