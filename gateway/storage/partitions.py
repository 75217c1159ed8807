"""Daily partitions of `requests`. They are created before their day starts and dropped when they expire."""

import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.storage.tables import DEFAULT_PARTITION

_ADVISORY_LOCK = 0x7061727469
_NAME = re.compile(r"requests_(\d{8})")

_PARTITIONS = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'requests'::regclass")


def partition_name(day: date) -> str:
    """Return the name of the partition of a UTC day.

    >>> partition_name(date(2025, 3, 1))
    'requests_20250301'
    """
    return f"requests_{day:%Y%m%d}"


def utc_day(moment: datetime) -> date:
    """Return the UTC day of `moment`, which determines the row's partition."""
    return moment.astimezone(UTC).date()


async def partitioned_days(connection: AsyncConnection) -> set[date]:
    """Return the days that have a partition."""
    names = await connection.scalars(_PARTITIONS)
    matches = (_NAME.fullmatch(name) for name in names)
    return {datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC).date() for match in matches if match}


async def ensure_partitions(connection: AsyncConnection, days: Iterable[date]) -> None:
    """Create the missing partitions of `days`, and move rows that arrived earlier into them."""
    # Two gateways may reach a new day together and would both create its partition.
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    for day in sorted(set(days) - await partitioned_days(connection)):
        await _create_partition(connection, day)


async def maintain(engine: AsyncEngine, *, today: date, keep_days: int | None, ahead_days: int = 2) -> int:
    """Create the partitions from today to `ahead_days` ahead, and drop days older than `keep_days` (None drops none).

    Returns:
        The number of dropped partitions.
    """
    async with engine.begin() as connection:
        await ensure_partitions(connection, (today + timedelta(days=ahead) for ahead in range(ahead_days + 1)))
    return 0 if keep_days is None else await drop_expired(engine, today - timedelta(days=keep_days))


async def drop_expired(engine: AsyncEngine, first_kept: date) -> int:
    """Drop every day before `first_kept`. Return the number of dropped partitions."""
    async with engine.begin() as connection:
        expired = sorted(day for day in await partitioned_days(connection) if day < first_kept)
        for day in expired:
            await connection.execute(text(f"DROP TABLE IF EXISTS {partition_name(day)}"))
        await connection.execute(
            text(f"DELETE FROM {DEFAULT_PARTITION} WHERE arrived_at < :first"), {"first": _midnight(first_kept)}
        )
    return len(expired)


async def _create_partition(connection: AsyncConnection, day: date) -> None:
    """Create a table, fill it and attach it. Unlike CREATE … PARTITION OF, this does not lock the other partitions."""
    name = partition_name(day)
    start, end = _midnight(day), _midnight(day + timedelta(days=1))
    # No row may enter the default partition between the move and the attachment.
    await connection.execute(text(f"LOCK TABLE {DEFAULT_PARTITION} IN ACCESS EXCLUSIVE MODE"))
    await connection.execute(text(f"CREATE TABLE {name} (LIKE requests INCLUDING DEFAULTS)"))
    await connection.execute(
        text(
            f"WITH early AS (DELETE FROM {DEFAULT_PARTITION} WHERE arrived_at >= :start AND arrived_at < :end"
            f" RETURNING *) INSERT INTO {name} SELECT * FROM early"
        ),
        {"start": start, "end": end},
    )
    await connection.execute(
        text(f"ALTER TABLE requests ATTACH PARTITION {name} FOR VALUES FROM ('{start}') TO ('{end}')")
    )


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
