"""What the features remember, learned again from Postgres: a restart forgets nothing that bears on predictions."""

import logging
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.prediction.features import N_FEATURES, FeatureExtractor, vector_from_bytes
from gateway.prediction.history import Caller
from gateway.prediction.prediction_input import HistoryKey
from gateway.prediction.predictor import Predictor
from gateway.storage.repository import Repository

_log = logging.getLogger(__name__)

CHUNK_ROWS = 500
"""Rows learned before others may have the event loop."""


async def warm_up(repository: Repository, predictor: Predictor) -> None:
    """Teach the predictor the answer lengths and the bytes per prompt token that earlier runs have stored."""
    lengths = await repository.length_counts()
    predictor.history.warm_up((Caller(row.app, row.model, row.user), row.tokens, row.count) for row in lengths)
    for ratio in await repository.token_ratios():
        predictor.prompt_tokens.learn_one(ratio.app, ratio.model, ratio.prompt_bytes, ratio.input_tokens)
    _log.info("Warm start with %d remembered answers", sum(row.count for row in lengths))


async def replay(engine: AsyncEngine, extractor: FeatureExtractor, *, limit: int = 50_000) -> int:
    """Teach the extractor the newest whole answers in the order of their arrival.

    Returns:
        How many there were.
    """
    learned = 0
    async with engine.connect() as connection:
        values = {"features_version": extractor.version, "limit": limit, "size": 4 * N_FEATURES}
        stream = await connection.stream(_NEWEST, values)
        async for rows in stream.partitions(CHUNK_ROWS):
            for row in rows:
                _learn(extractor, row)
            learned += len(rows)
    return learned


def _learn(extractor: FeatureExtractor, row: Row[Any]) -> None:
    key = HistoryKey(row.app, row.model, row.template, row.username)
    vector = vector_from_bytes(row.features)
    extractor.learn_one(key, vector, row.tokens, input_tokens=row.input_tokens, cut=row.cut)


_NEWEST = text("""
    SELECT applications.name AS app, end_users.name AS username, newest.*
    FROM (
        SELECT application_id, end_user_id, arrived_at, id, model, template, features, input_tokens,
            CAST(output_tokens AS double precision) / greatest(sequences, 1) AS tokens,
            finish_reason IS NOT DISTINCT FROM 'length' AS cut
        FROM requests
        WHERE status = 'ok' AND features_version = :features_version AND length(features) = :size
            AND output_tokens > 0
        ORDER BY arrived_at DESC, id DESC
        LIMIT :limit
    ) AS newest
    JOIN applications ON applications.id = application_id
    LEFT JOIN end_users ON end_users.id = end_user_id
    ORDER BY arrived_at, newest.id
""")
