"""Past requests into history, as if the gateway had answered them: all rows of all files, or none.

Each row is predicted before it is learned from, with what the rows before it have taught: its features and history's
prediction are those that the gateway would have had. The first model learns from the former and is measured against
the latter.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from uuid import uuid4

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.prediction.features import FeatureExtractor, vector_to_bytes
from gateway.prediction.history import Caller, HistoryPredictor
from gateway.prediction.prediction_input import PredictionInput
from gateway.storage.partitions import ensure_partitions
from gateway.storage.record import RequestRecord
from gateway.storage.repository import insert
from gateway.training.corpus import Corpus, OnBytes
from gateway.training.rows import PastRow

BATCH_ROWS = 500
ROUTE = "import"
"""In the place of an HTTP route."""

_EPOCH_DAY = date(1970, 1, 1)


class ImportReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came in.

    `dated_by` is "t" where the rows' times say when they arrived, "import" where they count as just arrived. `expired`
    rows are older than what history keeps, and will be forgotten.
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
        now: of the import; rows whose times are not Unix seconds arrived just before it, in their order.
        keep_days: how long history keeps requests.
        store_prompts: keep the texts.
        app_of: names the application of a row that names none, by its system prompt.
    """

    now: datetime
    keep_days: int
    store_prompts: bool
    app_of: Callable[[str | None], str]

    @property
    def oldest_kept(self) -> datetime:
        """Before it, history forgets."""
        return self.now - timedelta(days=self.keep_days)


async def import_corpus(
    engine: AsyncEngine, corpus: Corpus, extractor: FeatureExtractor, rules: ImportRules, on_bytes: OnBytes
) -> ImportReport:
    """Insert a corpus in one transaction.

    Raises:
        RowError: a file has changed since it was surveyed; nothing was imported.
        SQLAlchemyError: Postgres did not take it; nothing was imported.
    """
    records = _Records(corpus, extractor, rules)
    # Outside of the transaction: making a partition locks its table, and an empty one is no half of an import.
    async with engine.begin() as connection:
        await ensure_partitions(connection, records.days())
    async with engine.begin() as connection:
        stream = records.read(on_bytes)
        while batch := list(islice(stream, BATCH_ROWS)):
            await insert(connection, batch)
    return records.report()


class _Records:
    """The records of a corpus, made one by one as its rows are read."""

    def __init__(self, corpus: Corpus, extractor: FeatureExtractor, rules: ImportRules) -> None:
        self._corpus = corpus
        self._extractor = extractor
        self._rules = rules
        self._history = HistoryPredictor()
        self._dated = corpus.is_unix_time(rules.now.timestamp())
        self._apps: set[str] = set()
        self._users: set[tuple[str, str]] = set()
        self._expired = 0

    def days(self) -> set[date]:
        """List the days that history keeps, of those that the rows arrived on."""
        if not self._dated:
            return {self._rules.now.astimezone(UTC).date()}
        days = (_EPOCH_DAY + timedelta(days=number) for number in self._corpus.days)
        return {day for day in days if day >= self._rules.oldest_kept.date()}

    def read(self, on_bytes: OnBytes) -> Iterator[RequestRecord]:
        """Yield a record for each row, in the order of their times."""
        for number, row in enumerate(self._corpus.read(on_bytes)):
            arrived_at = self._arrival(number, row)
            self._expired += arrived_at < self._rules.oldest_kept
            yield self._record(row, arrived_at)

    def report(self) -> ImportReport:
        """Say what was read."""
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
        ask = PredictionInput.of_row(row)
        if row.app is None:
            ask = replace(ask, app=self._rules.app_of(ask.system))
        self._apps.add(ask.app)
        if ask.user is not None:
            self._users.add((ask.app, ask.user))
        vector = self._extractor.extract_one(ask)
        caller = Caller(ask.app, ask.model, ask.user)
        prediction = self._history.predict_one(caller, None)
        self._extractor.learn_one(ask.key, vector, row.output_tokens, input_tokens=row.input_tokens)
        self._history.learn_one(caller, row.output_tokens)
        id_ = uuid4()
        return RequestRecord(
            id=str(id_),
            request_id=f"import-{id_.hex[:12]}",
            arrived_at=arrived_at,
            app=ask.app,
            user=ask.user,
            model=ask.model,
            route=ROUTE,
            stream=False,
            status="ok",
            http_status=200,
            prompt_bytes=ask.text_bytes,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            predicted_tokens=round(prediction.length.quantile(0.5)),
            predicted_p90_tokens=round(prediction.length.quantile(0.9)),
            prediction_source=prediction.source,
            prompt=ask.text.replace("\0", "") if self._rules.store_prompts else None,
            features=vector_to_bytes(vector),
            features_version=self._extractor.version,
            template=ask.key.template,
        )
