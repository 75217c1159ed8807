"""The rows of a training: the newest complete answers in Postgres with features of the right version."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.tables import applications

CHUNK_ROWS = 2000
"""Rows that are read from the database at once."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Rows in arrival order.

    Attributes:
        features: (n, n_features) float32.
        tokens: (n,) tokens of the answers, per sequence.
        arrived_s: (n,) Unix seconds.
        apps: (n,) names of the applications.
        history_p50: (n,) median that history alone predicted; NaN where a model predicted.
        history_p90: (n,) 0.9-quantile that history alone predicted; NaN where a model predicted.
        skipped: rows that were left out because their features have the wrong size.
    """

    features: NDArray[np.float32]
    tokens: NDArray[np.float64]
    arrived_s: NDArray[np.float64]
    apps: Sequence[str]
    history_p50: NDArray[np.float64]
    history_p90: NDArray[np.float64]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Window":
        """Return the rows of a slice; the arrays are views."""
        return Window(
            self.features[rows],
            self.tokens[rows],
            self.arrived_s[rows],
            self.apps[rows],
            self.history_p50[rows],
            self.history_p90[rows],
        )

    @property
    def start(self) -> datetime:
        """Arrival of the oldest row."""
        return datetime.fromtimestamp(self.arrived_s[0], UTC)

    @property
    def end(self) -> datetime:
        """Arrival of the newest row."""
        return datetime.fromtimestamp(self.arrived_s[-1], UTC)

    def after(self, arrived_s: float) -> "Window":
        """Return the rows that arrived later."""
        return self[int(np.searchsorted(self.arrived_s, arrived_s, side="right")) :]


class TrainingRows:
    """The rows in Postgres that have one version of the features."""

    def __init__(self, engine: AsyncEngine, *, features_version: str, n_features: int) -> None:
        self.features_version = features_version
        self.n_features = n_features
        self._engine = engine

    async def newest(self, limit: int) -> Window:
        """Read the newest rows, at most `limit`, in chunks."""
        reader = _Reader(limit, self.n_features)
        async with self._engine.connect() as connection:
            values = {"features_version": self.features_version, "limit": limit}
            stream = await connection.stream(_WINDOW, values)
            async for rows in stream.partitions(CHUNK_ROWS):
                reader.add(rows)
            names = await connection.execute(select(applications.c.id, applications.c.name))
            return reader.window({row.id: row.name for row in names})

    async def count(self, *, since: datetime | None, limit: int) -> int:
        """Count the rows that arrived after `since` (None: all rows); at most `limit` rows are read."""
        values = {"features_version": self.features_version, "since": since or _EPOCH, "limit": limit}
        async with self._engine.connect() as connection:
            return int(await connection.scalar(_COUNT, values) or 0)


class _Reader:
    """Fills arrays from the end, because the newest rows come first."""

    def __init__(self, limit: int, n_features: int) -> None:
        self._features = np.empty((limit, n_features), np.float32)
        self._columns = np.empty((limit, 5), np.float64)
        self._first = limit
        self._skipped = 0

    def add(self, rows: Sequence[Row[Any]]) -> None:
        """Add a chunk."""
        size = 4 * self._features.shape[1]
        for row in rows:
            if len(row.features) != size:
                self._skipped += 1
                continue
            self._first -= 1
            self._features[self._first] = np.frombuffer(row.features, "<f4")
            self._columns[self._first] = row[1:]

    def window(self, names: Mapping[int, str]) -> Window:
        """Return the rows that were added, oldest first."""
        tokens, arrived_s, apps, p50, p90 = self._columns[self._first :].T
        return Window(
            features=self._features[self._first :],
            tokens=tokens,
            arrived_s=arrived_s,
            apps=[names[int(app)] for app in apps],
            history_p50=p50,
            history_p90=p90,
            skipped=self._skipped,
        )


_WHICH = "status = 'ok' AND features_version = :features_version AND features IS NOT NULL AND output_tokens > 0"

_WINDOW = text(f"""
    SELECT
        features,
        CAST(output_tokens AS double precision) / greatest(sequences, 1),
        CAST(extract(epoch FROM arrived_at) AS double precision),
        application_id,
        CASE WHEN from_history THEN CAST(predicted_tokens AS double precision) ELSE 'NaN' END,
        CASE WHEN from_history THEN CAST(predicted_p90_tokens AS double precision) ELSE 'NaN' END
    FROM requests
    CROSS JOIN LATERAL (
        SELECT coalesce(
            (prediction_source = 'prior' OR prediction_source LIKE 'history:%')
            AND predicted_tokens IS NOT NULL AND predicted_p90_tokens IS NOT NULL,
            false
        ) AS from_history
    ) AS source
    WHERE {_WHICH}
    ORDER BY arrived_at DESC, id DESC
    LIMIT :limit
""")

_COUNT = text(f"""
    SELECT count(*) FROM (
        SELECT FROM requests WHERE arrived_at > :since AND {_WHICH} LIMIT :limit
    ) AS newest
""")
