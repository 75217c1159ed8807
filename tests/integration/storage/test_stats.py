import random
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import numpy as np
import pytest

from gateway.storage.record import RequestRecord, Status
from gateway.storage.stats import (
    AppStats,
    LatencyStats,
    PredictionStats,
    Stats,
    TokenStats,
    Totals,
    UserStats,
    read_stats,
)

START = datetime(2025, 3, 1, tzinfo=UTC)


def random_records(a_record, n: int) -> list[RequestRecord]:
    rng = random.Random(17)

    def maybe(value: float) -> float | None:
        return None if rng.random() < 0.2 else value

    return [
        a_record(
            arrived_at=START + timedelta(minutes=rng.randrange(3 * 24 * 60)),
            app=rng.choice(["code", "summary", "translate"]),
            user=rng.choice(["ann", "bob", "cyd", None]),
            status=rng.choice(["ok", "ok", "ok", *get_args(Status)]),
            sequences=rng.choice([1, 1, 3]),
            input_tokens=maybe(rng.randrange(1000)),
            output_tokens=rng.randrange(2000),
            predicted_tokens=maybe(rng.randrange(700)),
            predicted_p90_tokens=maybe(rng.randrange(1500)),
            queue_ms=maybe(rng.expovariate(0.01)),
            ttft_ms=maybe(rng.expovariate(0.01)),
            e2e_ms=maybe(rng.expovariate(0.001)),
        )
        for _ in range(n)
    ]


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def quantiles(values: Sequence[float | None], *ranks: float) -> list[float | None]:
    known = [value for value in values if value is not None]
    return [float(np.quantile(known, rank)) if known else None for rank in ranks]


def shared(records: list[RequestRecord]) -> dict[str, Any]:
    ok = [record for record in records if record.status == "ok"]
    lengths = [record.output_tokens for record in ok]
    latencies = {
        name: LatencyStats(*quantiles([getattr(record, name) for record in ok], 0.5, 0.99))
        for name in ("queue_ms", "ttft_ms", "e2e_ms")
    }
    return {
        "app": records[0].app,
        "requests": len(records),
        "output_tokens": TokenStats(sum(lengths), mean(lengths), *quantiles(lengths, 0.5, 0.9)),
        **latencies,
    }


def prediction(records: list[RequestRecord]) -> PredictionStats:
    ok = [(record, record.output_tokens / record.sequences) for record in records if record.status == "ok"]
    errors = [abs(record.predicted_tokens - length) for record, length in ok if record.predicted_tokens is not None]
    covered = [
        length <= record.predicted_p90_tokens for record, length in ok if record.predicted_p90_tokens is not None
    ]
    return PredictionStats(mean(errors), mean(covered))


def app_stats(records: list[RequestRecord]) -> AppStats:
    return AppStats(
        errors=sum(record.status in ("rejected", "evicted", "failed") for record in records),
        input_tokens=sum(record.input_tokens or 0 for record in records if record.status == "ok"),
        prediction=prediction(records),
        users=len({record.user for record in records} - {None}),
        **shared(records),
    )


def expected(records: list[RequestRecord], max_users: int = 100) -> Stats:
    by_app, by_user = defaultdict(list), defaultdict(list)
    for record in records:
        by_app[record.app].append(record)
        if record.user is not None:
            by_user[record.app, record.user].append(record)
    most_active = sorted(by_user.items(), key=lambda item: (-len(item[1]), item[0]))[:max_users]
    ok = [record for record in records if record.status == "ok"]
    return Stats(
        [app_stats(by_app[app]) for app in sorted(by_app)],
        [UserStats(user=user, **shared(theirs)) for (_, user), theirs in most_active],
        Totals(
            requests=len(records),
            **{status: sum(record.status == status for record in records) for status in get_args(Status)},
            input_tokens=sum(record.input_tokens or 0 for record in ok),
            output_tokens=sum(record.output_tokens for record in ok),
        ),
    )


def flat(value: object) -> list[object]:
    """Return the leaves of a tree of structs, so that floats can be compared approximately."""
    if isinstance(value, list):
        return [leaf for element in value for leaf in flat(element)]
    fields = getattr(value, "__struct_fields__", None)
    return [leaf for field in fields for leaf in flat(getattr(value, field))] if fields else [value]


def same(stats: Stats, other: Stats) -> bool:
    ours, theirs = flat(stats), flat(other)
    return len(ours) == len(theirs) and all(
        mine == pytest.approx(its) if isinstance(its, float) else mine == its
        for mine, its in zip(ours, theirs, strict=True)
    )


async def test_stats_equal_a_recomputation_under_every_filter(engine, repository, a_record):
    records = random_records(a_record, 1500)
    await repository.write(records)
    since = START + timedelta(days=1.3)
    cases: list[Any] = [
        ({}, lambda _: True),
        ({"app": "code"}, lambda record: record.app == "code"),
        ({"user": "bob"}, lambda record: record.user == "bob"),
        ({"since": since}, lambda record: record.arrived_at >= since),
        (
            {"app": "code", "user": "ann", "since": since},
            lambda record: (record.app, record.user) == ("code", "ann") and record.arrived_at >= since,
        ),
        ({"app": "nobody's"}, lambda _: False),
    ]
    for filters, keep in cases:
        assert same(await read_stats(engine, **filters), expected([record for record in records if keep(record)]))


async def test_only_the_most_active_users_are_listed(engine, repository, a_record):
    records = random_records(a_record, 300)
    await repository.write(records)
    assert same(await read_stats(engine, max_users=4), expected(records, max_users=4))


async def test_mean_is_none_without_complete_answers(engine, repository, a_record):
    await repository.write([a_record(status="failed")])
    stats = await read_stats(engine)
    assert stats.apps[0].output_tokens == TokenStats(0, None, None, None)
    assert stats.apps[0].errors == 1


async def test_without_requests_all_totals_are_zero(engine):
    stats = await read_stats(engine)
    assert stats.apps == stats.users == []
    assert set(flat(stats.totals)) == {0}
