"""The `requests` table: writes batches of records, and reads the data for the predictor's warm start.

A batch is sent as one JSON document, which Postgres unpacks; a join resolves names to ids. So a batch of any size takes
three statements and almost no CPU on the event loop, and there is no cache of names that could become wrong.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime
from uuid import uuid4

import asyncpg
import msgspec
from sqlalchemy import CursorResult, LargeBinary, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.errors import DatabaseUnavailable, RecordsRefused
from gateway.storage.partitions import ensure_partitions, utc_day
from gateway.storage.record import RequestRecord
from gateway.storage.tables import requests
from gateway.stored_text import stored_text

_log = logging.getLogger(__name__)

_TRANSIENT = ("08", "40", "55", "57P")
"""SQLSTATE classes of a write that may succeed later: connection, rollback, locks, shutdown and crash of the server."""

_STATE = ("25", "28", "3D", "53", "58")
"""SQLSTATE classes with which Postgres names its own state as the reason: read-only, authentication, missing database,
resources (disk, memory, connections), system. Every class that is in neither list may be the fault of one row."""

_WRITE_TIMEOUT_S = 15

CHUNK_ROWS = 500
"""Rows that are read between two turns of the event loop."""


class AnsweredRequest(msgspec.Struct, frozen=True):
    """A request that was answered in full, as the memory of past answers learns it.

    Attributes:
        template: digest of the system prompt.
        tokens: output tokens per sequence.
        cut: whether `max_tokens` ended the answer.
        feature: the 4 bytes of one feature; None if the request has no features of the right version.
    """

    app: str
    user: str | None
    model: str
    template: str | None
    tokens: float
    sequences: int
    prompt_bytes: int
    input_tokens: int | None
    cut: bool
    feature: bytes | None


class Repository:
    """Reads and writes the `requests` table."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._partitioned: set[date] = set()

    async def write(self, records: Sequence[RequestRecord]) -> int:
        """Insert all records or none. Records that are already in the table do not change.

        Returns:
            The number of new rows.

        Raises:
            DatabaseUnavailable: Postgres is unreachable, or does not accept writes now.
            RecordsRefused: Postgres answers, and did not accept one of the records. `probe` tells whether it accepts
                any.
        """
        if not records:
            return 0
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._ensure_partitions({utc_day(record.arrived_at) for record in records})
                async with self._engine.begin() as connection:
                    return await insert(connection, records)
        except (UnicodeEncodeError, OverflowError) as error:  # one half of a surrogate pair; a date after the year 9999
            raise RecordsRefused(str(error)) from error
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise _classify(error) from error

    async def probe(self) -> None:
        """Insert an ordinary record and roll back. Return if that succeeds, because then Postgres accepts records.

        Raises:
            DatabaseUnavailable: Postgres is unreachable, or does not accept any record now: it is read-only, a table is
                missing, or the role may not write.
        """
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S), self._engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await insert(connection, [_ordinary_record()])
                await connection.rollback()
        except (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise DatabaseUnavailable(_reason(error)) from error

    async def answered_requests(
        self, *, features_versions: str, feature: int, limit: int
    ) -> AsyncIterator[list[AnsweredRequest]]:
        """Yield the newest `limit` requests that were answered in full, in the order of their arrival, in chunks.

        Args:
            features_versions: SQL pattern of the feature versions from which to read the feature.
            feature: index of the feature in the vector.
            limit: requests at most.
        """
        values = {"versions": features_versions, "position": 4 * feature + 1, "limit": limit}
        async with self._engine.connect() as connection:
            stream = await connection.stream(_ANSWERED_REQUESTS, values)
            async for rows in stream.partitions(CHUNK_ROWS):
                yield [AnsweredRequest(*row) for row in rows]

    async def _ensure_partitions(self, days: set[date]) -> None:
        missing = days - self._partitioned
        if not missing:
            return
        try:
            async with self._engine.begin() as connection:
                await ensure_partitions(connection, missing)
        except DBAPIError as error:  # the rows then go to the default partition, if the database works
            _log.warning("The daily partition of requests cannot be created: %s", _reason(error))
            return
        self._partitioned |= missing


async def insert(connection: AsyncConnection, records: Sequence[RequestRecord]) -> int:
    """Insert records, and the applications and users that are new, in the caller's transaction.

    Returns:
        The number of new rows.

    Raises:
        UnicodeEncodeError: a record contains one half of a surrogate pair, which has no encoding.
        DBAPIError: Postgres is unreachable, or does not accept the records.
    """
    batch = msgspec.json.encode(records).decode()
    apps = sorted({record.app for record in records})
    users = sorted({(record.app, record.user) for record in records if record.user is not None})
    await connection.execute(_ADD_APPLICATIONS, {"apps": apps})
    await connection.execute(_ADD_END_USERS, {"apps": [app for app, _ in users], "users": [user for _, user in users]})
    inserted: CursorResult[tuple[()]] = await connection.execute(_ADD_REQUESTS, {"batch": batch})
    return inserted.rowcount


def _ordinary_record() -> RequestRecord:
    return RequestRecord(
        id=str(uuid4()),
        request_id="probe",
        arrived_at=datetime.now(UTC),
        app="probe",
        user="probe",
        model="probe",
        route="probe",
        stream=False,
        status="ok",
        http_status=200,
    )


def _classify(error: Exception) -> DatabaseUnavailable | RecordsRefused:
    """Return the error as one of a row or one of the database."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    sqlstate: str | None = getattr(cause, "sqlstate", None)
    if sqlstate is None or sqlstate.startswith(_TRANSIENT):  # without SQLSTATE, the server has not answered
        return DatabaseUnavailable(_reason(error))
    if sqlstate.startswith(_STATE):
        return DatabaseUnavailable(_reason(error), certain=True)
    return RecordsRefused(_reason(error))


def _reason(error: Exception) -> str:
    """Return the first line of the message: the others may contain values of the row."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    return stored_text(str(cause).partition("\n")[0] or type(cause).__name__)


# A known name takes no sequence value. A name that another gateway adds at the same time is no conflict.
_ADD_APPLICATIONS = text("""
    INSERT INTO applications (name)
    SELECT app FROM unnest(CAST(:apps AS text[])) AS batch (app)
    WHERE NOT EXISTS (SELECT FROM applications WHERE name = app)
    ON CONFLICT DO NOTHING
""")

_ADD_END_USERS = text("""
    INSERT INTO end_users (application_id, name)
    SELECT applications.id, batch.username
    FROM unnest(CAST(:apps AS text[]), CAST(:users AS text[])) AS batch (app, username)
    JOIN applications ON applications.name = batch.app
    WHERE NOT EXISTS (
        SELECT FROM end_users WHERE application_id = applications.id AND end_users.name = batch.username
    )
    ON CONFLICT DO NOTHING
""")

_OWN_COLUMNS = [column.name for column in requests.columns if not column.foreign_keys]

# A column gets the record's field of the same name, converted to the column's type. JSON has no bytes,
# so they are sent as base64.
_VALUES = [
    f"decode(document ->> '{name}', 'base64')" if isinstance(requests.c[name].type, LargeBinary) else f"record.{name}"
    for name in _OWN_COLUMNS
]
_ADD_REQUESTS = text(f"""
    INSERT INTO requests (application_id, end_user_id, {", ".join(_OWN_COLUMNS)})
    SELECT applications.id, end_users.id, {", ".join(_VALUES)}
    FROM json_array_elements(CAST(:batch AS json)) AS batch (document)
    CROSS JOIN json_populate_record(CAST(NULL AS requests), document) AS record
    JOIN applications ON applications.name = document ->> 'app'
    LEFT JOIN end_users ON end_users.application_id = applications.id AND end_users.name = document ->> 'user'
    ON CONFLICT DO NOTHING
""")

# A feature whose bytes are missing counts as unknown.
_ANSWERED_REQUESTS = text("""
    SELECT applications.name, end_users.name, model, template, tokens, sequences, prompt_bytes, input_tokens, cut,
        feature
    FROM (
        SELECT application_id, end_user_id, arrived_at, id, model, template, sequences, prompt_bytes, input_tokens,
            CAST(output_tokens AS double precision) / greatest(sequences, 1) AS tokens,
            finish_reason IS NOT DISTINCT FROM 'length' AS cut,
            CASE WHEN features_version LIKE :versions AND length(features) >= :position + 3
                THEN substring(features FROM :position FOR 4) END AS feature
        FROM requests
        WHERE status = 'ok' AND output_tokens > 0
        ORDER BY arrived_at DESC, id DESC
        LIMIT :limit
    ) AS newest
    JOIN applications ON applications.id = application_id
    LEFT JOIN end_users ON end_users.id = end_user_id
    ORDER BY arrived_at, newest.id
""")
