"""The memory of past answers after a restart: the stored requests, learned again in the order of their arrival."""

import logging
import struct
from math import nan

from gateway.prediction.answer_memory import AnswerMemory, PastAnswer
from gateway.prediction.features import FEATURE_VERSION, SIZE
from gateway.prediction.prediction_input import HistoryKey
from gateway.storage.repository import AnsweredRequest, Repository

_log = logging.getLogger(__name__)


async def replay(repository: Repository, memory: AnswerMemory, *, limit: int = 50_000) -> int:
    """Teach the memory the newest complete answers in the order of their arrival. Returns their number.

    Every chunk of rows is followed by a read from the database, so other tasks can run.
    """
    learned = 0
    versions = f"{FEATURE_VERSION}:%"
    async for rows in repository.answered_requests(features_versions=versions, feature=SIZE, limit=limit):
        for row in rows:
            memory.learn_one(_past_answer(row))
        learned += len(rows)
    _log.info("The predictor learned %d stored answers again", learned)
    return learned


def _past_answer(row: AnsweredRequest) -> PastAnswer:
    size: float = struct.unpack("<f", row.feature)[0] if row.feature else nan
    key = HistoryKey(row.app, row.model, row.template, row.user)
    return PastAnswer(key, row.tokens, row.sequences, size, row.prompt_bytes, row.input_tokens, row.cut)
