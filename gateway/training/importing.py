"""Import of past requests into the database, as if the gateway had answered them: all rows of all files, or none.

Each row is predicted from the rows before it, and then learned. So its features and its prediction from history are
those that the gateway would have had. The first model is trained on the features and compared with the predictions.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from uuid import uuid4

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.prediction.answer_memory import AnswerMemory, PastAnswer
from gateway.prediction.embedder import Embedder
from gateway.prediction.features import SIZE, FeatureExtractor, vector_to_bytes
from gateway.storage.partitions import ensure_partitions
from gateway.storage.record import RequestRecord
from gateway.storage.repository import insert
from gateway.training.corpus import Corpus, OnBytes
from gateway.training.rows import PastRow

BATCH_ROWS = 500
ROUTE = "import"
"""The route of an imported request."""

_EPOCH_DAY = date(1970, 1, 1)


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an import.

    Attributes:
        rows: imported requests.
        apps: their applications.
        users: their users.
        dated_by: "t" if the rows' times are the arrivals, "import" if the rows count as just arrived.
        expired: rows that are older than the retention time and will be deleted.
    """

    rows: int
    apps: int
    users: int
    dated_by: str
    expired: int


@dataclass(frozen=True, slots=True)
class ImportRules:
    """How rows become requests.

    Args:
        now: time of the import; rows whose times are not Unix seconds arrived just before it, in their order.
        keep_days: days for which requests are kept.
        store_prompts: whether texts are stored.
        app_of: returns the application of a row that names none, from its system prompt.
    """

    now: datetime
    keep_days: int
    store_prompts: bool
    app_of: Callable[[str | None], str]

    @property
    def oldest_kept(self) -> datetime:
        """Requests that arrived before this time will be deleted."""
        return self.now - timedelta(days=self.keep_days)


async def import_corpus(
    engine: AsyncEngine, corpus: Corpus, embedder: Embedder, rules: ImportRules, on_bytes: OnBytes
) -> ImportReport:
    """Insert a corpus in one transaction.

    Raises:
        RowError: a file has changed since it was checked; nothing was imported.
        SQLAlchemyError: Postgres refused the rows; nothing was imported.
    """
    records = _Records(corpus, embedder, rules)
    # Not in the transaction of the rows: creating a partition locks the table, and an empty partition does no harm.
    async with engine.begin() as connection:
        await ensure_partitions(connection, records.days())
    async with engine.begin() as connection:
        stream = records.read(on_bytes)
        while batch := list(islice(stream, BATCH_ROWS)):
            await insert(connection, batch)
    return records.report()


class _Records:
    """Makes the records of a corpus one by one as its rows are read."""

    def __init__(self, corpus: Corpus, embedder: Embedder, rules: ImportRules) -> None:
        self._corpus = corpus
        self._rules = rules
        self._memory = AnswerMemory()
        self._extractor = FeatureExtractor(embedder, self._memory)
        self._dated = corpus.is_unix_time(rules.now.timestamp())
        self._apps: set[str] = set()
        self._users: set[tuple[str, str]] = set()
        self._expired = 0

    def days(self) -> set[date]:
        """Return the days on which rows arrived that are still kept."""
        if not self._dated:
            return {self._rules.now.astimezone(UTC).date()}
        days = (_EPOCH_DAY + timedelta(days=number) for number in self._corpus.days)
        return {day for day in days if day >= self._rules.oldest_kept.date()}

    def read(self, on_bytes: OnBytes) -> Iterator[RequestRecord]:
        """Yield a record for each row, in time order."""
        for number, row in enumerate(self._corpus.read(on_bytes)):
            arrived_at = self._arrival(number, row)
            self._expired += arrived_at < self._rules.oldest_kept
            yield self._record(row, arrived_at)

    def report(self) -> ImportReport:
        """Return the report of the rows read so far."""
        return ImportReport(
            rows=self._corpus.rows,
            apps=len(self._apps),
            users=len(self._users),
            dated_by="t" if self._dated else "import",
            expired=self._expired,
        )

    def _arrival(self, number: int, row: PastRow) -> datetime:
        if self._dated and row.t is not None:
            return datetime.fromtimestamp(row.t, UTC)
        return self._rules.now - timedelta(microseconds=self._corpus.rows - number)

    def _record(self, row: PastRow, arrived_at: datetime) -> RequestRecord:
        past = row.prediction_input()
        if row.app is None:
            past = replace(past, app=self._rules.app_of(past.system))
        key = past.key
        self._apps.add(key.app)
        if key.user is not None:
            self._users.add((key.app, key.user))
        vector = self._extractor.extract_one(past)
        prediction = self._memory.predict_one(key)
        size = float(vector[SIZE])
        self._memory.learn_one(
            PastAnswer(key, row.output_tokens, size=size, prompt_bytes=past.text_bytes, input_tokens=row.input_tokens)
        )
        id_ = uuid4()
        return RequestRecord(
            id=str(id_),
            request_id=f"import-{id_.hex[:12]}",
            arrived_at=arrived_at,
            app=key.app,
            user=key.user,
            model=key.model,
            route=ROUTE,
            stream=False,
            status="ok",
            http_status=200,
            prompt_bytes=past.text_bytes,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            predicted_tokens=round(prediction.length.quantile(0.5)),
            predicted_p90_tokens=round(prediction.length.quantile(0.9)),
            prediction_source=prediction.source,
            prompt=past.text.replace("\0", "") if self._rules.store_prompts else None,
            features=vector_to_bytes(vector),
            features_version=self._extractor.version,
            template=key.template,
        )
