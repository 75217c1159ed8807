"""The statistics of `GET /admin/stats` that come from Postgres: exact figures per application and per user.

Each takes one query. Counts include every request. Lengths, predictions and times include only completely answered
requests (`ok`). Quantiles interpolate linearly, as in numpy. Prediction errors are per sequence.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar, get_args

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Double,
    Function,
    Integer,
    Row,
    WithinGroup,
    and_,
    cast,
    distinct,
    func,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.record import Status
from gateway.storage.recorder import Recorder
from gateway.storage.tables import applications, end_users, requests
from gateway.stored_text import stored_text

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class TokenStats(msgspec.Struct, frozen=True):
    """Output lengths in tokens. Mean and quantiles are None if there are no answers."""

    total: int
    mean: float | None
    p50: float | None
    p90: float | None


class PredictionStats(msgspec.Struct, frozen=True):
    """Mean absolute error in tokens, and the share of answers that were not longer than their predicted p90."""

    mae: float | None
    p90_coverage: float | None


class LatencyStats(msgspec.Struct, frozen=True):
    """Quantiles in milliseconds."""

    p50: float | None
    p99: float | None


class AppStats(msgspec.Struct, frozen=True, kw_only=True):
    """One application's requests. `errors` counts rejected, evicted and failed requests, but not cancelled ones."""

    app: str
    requests: int
    errors: int
    input_tokens: int
    output_tokens: TokenStats
    prediction: PredictionStats
    queue_ms: LatencyStats
    ttft_ms: LatencyStats
    e2e_ms: LatencyStats
    users: int


class UserStats(msgspec.Struct, frozen=True, kw_only=True):
    """One end user's requests."""

    app: str
    user: str
    requests: int
    output_tokens: TokenStats
    queue_ms: LatencyStats
    ttft_ms: LatencyStats
    e2e_ms: LatencyStats


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """All requests that match the filters, by status."""

    requests: int
    ok: int
    rejected: int
    evicted: int
    cancelled: int
    failed: int
    input_tokens: int
    output_tokens: int


class Stats(msgspec.Struct, frozen=True):
    """The part of `/admin/stats` that comes from Postgres."""

    apps: list[AppStats]
    users: list[UserStats]
    totals: Totals


class StatsReader:
    """Reads the figures for a gateway that may have lost its database.

    Args:
        engine: the database.
        recorder: writes the newest requests before the figures are read.
        on_fallback: called with the cause when the database is unavailable.
    """

    def __init__(self, engine: AsyncEngine, recorder: Recorder, on_fallback: Callable[[str], None]) -> None:
        self._engine = engine
        self._recorder = recorder
        self._on_fallback = on_fallback

    async def read(self, app: str | None, user: str | None, since: datetime | None) -> Stats | None:
        """Return the figures as `read_stats` does; None if the database is unavailable."""
        try:
            await self._recorder.flush()
            return await read_stats(self._engine, app=app, user=user, since=since)
        except DATABASE_ERRORS as error:
            _log.warning("The request statistics cannot be read from the database: %s", error)
            self._on_fallback("stats_without_database")
            return None


async def read_stats(
    engine: AsyncEngine,
    *,
    app: str | None = None,
    user: str | None = None,
    since: datetime | None = None,
    max_users: int = 100,
) -> Stats:
    """Return the statistics of the requests that match all given filters.

    Args:
        engine: connections to the database.
        app: the application's name.
        user: the end user's name. Users with this name in several applications are listed separately.
        since: the first arrival time, with a time zone.
        max_users: largest number of users in the result, the most active first.
    """
    which = _filter(app, user, since)
    source = requests.join(applications)
    by_app = (
        select(*_APP_COLUMNS)
        .select_from(source.outerjoin(end_users, requests.c.end_user_id == end_users.c.id))
        .where(which)
        .group_by(applications.c.name)
        .order_by(applications.c.name)
    )
    by_user = (
        select(*_USER_COLUMNS)
        .select_from(source.join(end_users, requests.c.end_user_id == end_users.c.id))
        .where(which)
        .group_by(applications.c.name, end_users.c.name)
        .order_by(func.count().desc(), applications.c.name, end_users.c.name)
        .limit(max_users)
    )
    async with engine.connect() as connection:
        app_rows = (await connection.execute(by_app)).all()
        user_rows = (await connection.execute(by_user)).all()
    return Stats([_app_stats(row) for row in app_rows], [_user_stats(row) for row in user_rows], _totals(app_rows))


def _filter(app: str | None, user: str | None, since: datetime | None) -> ColumnElement[bool]:
    return and_(
        True,
        *([applications.c.name == stored_text(app)] if app is not None else []),
        *([end_users.c.name == stored_text(user)] if user is not None else []),
        *([requests.c.arrived_at >= since] if since is not None else []),
    )


def _count(status: Status) -> ColumnElement[int]:
    return func.count().filter(requests.c.status == status).label(status)


def _of_ok(aggregate: Function[_T] | WithinGroup[_T]) -> ColumnElement[_T]:
    return aggregate.filter(requests.c.status == "ok")


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(cast(_of_ok(func.sum(column)), BigInteger), 0)


def _mean(expression: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(_of_ok(func.avg(expression)), Double)


def _quantiles(column: ColumnElement[Any], *ranks: float) -> list[ColumnElement[float]]:
    """Return one column per rank. Postgres sorts once for all columns with the same input."""
    of_rank = {rank: func.percentile_cont(rank).within_group(column) for rank in ranks}
    return [_of_ok(quantile).label(f"{column.key}_p{round(rank * 100)}") for rank, quantile in of_rank.items()]


_answer_tokens = cast(requests.c.output_tokens, Double) / func.greatest(requests.c.sequences, 1)

_SHARED_COLUMNS = (
    applications.c.name.label("app"),
    func.count().label("requests"),
    _sum(requests.c.output_tokens).label("output_tokens_total"),
    _mean(requests.c.output_tokens).label("output_tokens_mean"),
    *_quantiles(requests.c.output_tokens, 0.5, 0.9),
    *_quantiles(requests.c.queue_ms, 0.5, 0.99),
    *_quantiles(requests.c.ttft_ms, 0.5, 0.99),
    *_quantiles(requests.c.e2e_ms, 0.5, 0.99),
)
_APP_COLUMNS = (
    *_SHARED_COLUMNS,
    *(_count(status) for status in get_args(Status)),
    _sum(requests.c.input_tokens).label("input_tokens"),
    func.count(distinct(requests.c.end_user_id)).label("users"),
    _mean(func.abs(requests.c.predicted_tokens - _answer_tokens)).label("mae"),
    _mean(cast(_answer_tokens <= requests.c.predicted_p90_tokens, Integer)).label("p90_coverage"),
)
_USER_COLUMNS = (*_SHARED_COLUMNS, end_users.c.name.label("user"))


def _app_stats(row: Row[Any]) -> AppStats:
    return AppStats(
        app=row.app,
        requests=row.requests,
        errors=row.rejected + row.evicted + row.failed,
        input_tokens=row.input_tokens,
        prediction=PredictionStats(row.mae, row.p90_coverage),
        users=row.users,
        **_shared(row),
    )


def _user_stats(row: Row[Any]) -> UserStats:
    return UserStats(app=row.app, user=row.user, requests=row.requests, **_shared(row))


def _shared(row: Row[Any]) -> dict[str, Any]:
    lengths = (row.output_tokens_total, row.output_tokens_mean, row.output_tokens_p50, row.output_tokens_p90)
    return {
        "output_tokens": TokenStats(*lengths),
        "queue_ms": LatencyStats(row.queue_ms_p50, row.queue_ms_p99),
        "ttft_ms": LatencyStats(row.ttft_ms_p50, row.ttft_ms_p99),
        "e2e_ms": LatencyStats(row.e2e_ms_p50, row.e2e_ms_p99),
    }


def _totals(rows: Sequence[Row[Any]]) -> Totals:
    columns = {name: name for name in Totals.__struct_fields__} | {"output_tokens": "output_tokens_total"}
    return Totals(**{name: sum(getattr(row, column) for row in rows) for name, column in columns.items()})
