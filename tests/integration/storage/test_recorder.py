from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from gateway.errors import DatabaseUnavailable
from gateway.storage.database import create_database_engine
from gateway.storage.embedded import EmbeddedPostgres
from gateway.storage.journal import Journal
from gateway.storage.migrate import upgrade
from gateway.storage.recorder import MAX_SEGMENT_FAILURES, SUSPECT_AFTER_FAILURES, Recorder
from gateway.storage.repository import Repository

COUNT = "SELECT count(*), count(DISTINCT id) FROM requests"


@pytest.fixture
def open_journal(tmp_path: Path) -> Callable[..., Journal]:
    return lambda **limits: Journal(tmp_path / "journal", **limits)


@pytest.fixture
def unreachable(tmp_path: Path) -> Repository:
    return Repository(create_database_engine(f"postgresql+asyncpg://postgres@/magnus?host={tmp_path}"))


async def test_flush_makes_records_readable(repository, open_journal, a_record, rows):
    async with Recorder(repository, open_journal(), interval_s=60) as recorder:
        for _ in range(1234):
            recorder.record(a_record())
        assert recorder.pending == 1234
        await recorder.flush()
        assert await rows(COUNT) == [(1234, 1234)]
        assert (recorder.written, recorder.pending, recorder.journaled, recorder.dropped) == (1234, 0, 0, 0)


async def test_records_are_written_in_the_background(repository, open_journal, a_record, eventually):
    async with Recorder(repository, open_journal(), interval_s=0.01) as recorder:
        recorder.record(a_record())
        await eventually(lambda: recorder.written == 1)


async def test_full_batch_does_not_wait_for_the_interval(repository, open_journal, a_record, eventually):
    async with Recorder(repository, open_journal(), interval_s=60, batch_size=10) as recorder:
        for _ in range(10):
            recorder.record(a_record())
        await eventually(lambda: recorder.written == 10)


async def test_close_writes_pending_records_and_accepts_no_more(repository, open_journal, a_record, rows):
    recorder = Recorder(repository, open_journal(), interval_s=60)
    recorder.start()
    recorder.record(a_record())
    await recorder.aclose()
    recorder.record(a_record())
    assert await rows(COUNT) == [(1, 1)]
    assert recorder.dropped == 1


async def test_no_record_is_lost_or_duplicated_while_postgres_is_stopped(
    tmp_path_factory, open_journal, a_record, eventually
):
    postgres = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    url = await postgres.start()
    try:
        await upgrade(url)
        engine = create_database_engine(url)
        async with Recorder(Repository(engine), open_journal(segment_bytes=4096), retry_s=0.05) as recorder:
            recorder.record(a_record())
            await recorder.flush()
            await postgres.stop()
            for _ in range(50):
                recorder.record(a_record())
                await recorder.flush()
            assert recorder.journaled == 50
            assert not recorder.database_available
            await postgres.start()
            recorder.record(a_record())
            await eventually(lambda: recorder.replayed + recorder.written == 52)
            assert recorder.database_available
        async with engine.connect() as connection:
            assert tuple((await connection.execute(text(COUNT))).one()) == (52, 52)
        await engine.dispose()
        assert recorder.dropped == recorder.refused == recorder.pending == 0
    finally:
        await postgres.stop()


async def test_next_run_replays_the_journal(repository, unreachable, open_journal, a_record, rows, eventually):
    async with Recorder(unreachable, open_journal(), interval_s=60) as recorder:
        for _ in range(20):
            recorder.record(a_record())
    assert recorder.journaled == 20
    async with Recorder(repository, open_journal(), interval_s=0.01) as recorder:
        await eventually(lambda: recorder.replayed == 20)
    assert await rows(COUNT) == [(20, 20)]


async def test_replay_of_stored_records_changes_nothing(repository, open_journal, a_record, rows, eventually):
    records = [a_record() for _ in range(5)]
    await repository.write(records[:3])
    journal = open_journal()
    journal.append([msgspec.json.encode(record) for record in records])
    async with Recorder(repository, journal, interval_s=0.01) as recorder:
        await eventually(lambda: journal.size_bytes == 0)
    assert recorder.replayed == 2
    assert await rows(COUNT) == [(5, 5)]


async def test_bounded_journal_drops_and_counts(unreachable, open_journal, a_record):
    record = a_record()
    size = len(msgspec.json.encode(record)) + 1
    async with Recorder(unreachable, open_journal(max_bytes=3 * size), interval_s=60) as recorder:
        for _ in range(5):
            recorder.record(record)
    assert (recorder.journaled, recorder.dropped, recorder.pending) == (3, 2, 0)


async def test_bounded_queue_drops_and_counts(repository, open_journal, a_record):
    async with Recorder(repository, open_journal(), interval_s=60, max_pending=3) as recorder:
        for _ in range(5):
            recorder.record(a_record())
    assert (recorder.written, recorder.dropped) == (3, 2)


REFUSE_BAD_MODEL = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.model = 'bad' THEN RAISE EXCEPTION 'no such thing' USING ERRCODE = '{sqlstate}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON requests FOR EACH ROW EXECUTE FUNCTION refuse();
"""


async def execute(engine, script):
    async with engine.begin() as connection:
        for statement in script.replace("END $$;", "END $$\0").replace(";\n    CREATE", "\0CREATE").split("\0"):
            await connection.execute(text(statement.replace(":", "\\:")))


def refused_lines(tmp_path):
    return [msgspec.json.decode(line) for line in (tmp_path / "journal/refused.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("invalid", [{"id": "not a uuid"}, {"output_tokens": 2**70}, {"input_tokens": -(2**63) - 1}])
async def test_only_the_invalid_record_of_a_batch_is_refused(
    repository, open_journal, a_record, rows, tmp_path, invalid
):
    async with Recorder(repository, open_journal(), interval_s=60) as recorder:
        for index in range(100):
            recorder.record(a_record(**invalid if index in (3, 50) else {}))
    assert (recorder.written, recorder.refused, recorder.dropped) == (98, 2, 0)
    assert await rows(COUNT) == [(98, 98)]
    lines = refused_lines(tmp_path)
    assert [line["error"] for line in lines] == [recorder.last_error] * 2
    assert [line["record"]["app"] for line in lines] == ["translate"] * 2


@pytest.mark.parametrize("sqlstate", ["54000", "P0001", "XX000", "42883", "57014"])
async def test_record_is_refused_whatever_its_sqlstate(
    repository, engine, open_journal, a_record, rows, tmp_path, sqlstate
):
    await execute(engine, REFUSE_BAD_MODEL.format(sqlstate=sqlstate))
    async with Recorder(repository, open_journal(), interval_s=60) as recorder:
        for index in range(20):
            recorder.record(a_record(model="bad" if index == 7 else "llama"))
    assert (recorder.written, recorder.refused, recorder.journaled) == (19, 1, 0)
    assert recorder.state()["last_error"] == "no such thing"
    assert await rows(COUNT) == [(19, 19)]


async def test_record_that_always_looks_like_a_deadlock_is_refused_at_last(
    repository, engine, open_journal, a_record, rows, eventually
):
    await execute(engine, REFUSE_BAD_MODEL.format(sqlstate="40P01"))
    async with Recorder(repository, open_journal(), interval_s=0.01, retry_s=0.01) as recorder:
        for index in range(20):
            recorder.record(a_record(model="bad" if index == 7 else "llama"))
        await eventually(lambda: recorder.refused == 1 and recorder.written + recorder.replayed == 19)
    assert await rows(COUNT) == [(19, 19)]


@pytest.mark.parametrize("sqlstate", ["53100", "25006", "58030"])
async def test_no_record_is_set_aside_while_postgres_names_its_own_state(
    repository, engine, open_journal, a_record, eventually, sqlstate
):
    await execute(engine, REFUSE_BAD_MODEL.format(sqlstate=sqlstate))
    attempts = []
    write = repository.write
    repository.write = lambda records: attempts.append(records) or write(records)
    async with Recorder(repository, open_journal(), interval_s=0.01, retry_s=0.01) as recorder:
        recorder.record(a_record(model="bad"))
        await eventually(lambda: len(attempts) > 2 * MAX_SEGMENT_FAILURES)
        assert (recorder.journaled, recorder.refused, recorder.set_aside) == (1, 0, 0)


@pytest.mark.parametrize(
    "broken",
    [
        "ALTER TABLE applications RENAME TO gone",
        "ALTER TABLE requests ADD CONSTRAINT none_more CHECK (false) NOT VALID",
        "CREATE RULE none_more AS ON INSERT TO end_users DO INSTEAD SELECT 1/0",
    ],
)
async def test_no_record_is_refused_while_postgres_accepts_none(
    repository, engine, open_journal, a_record, rows, eventually, broken
):
    await repository.write([a_record()])
    await execute(engine, broken)
    journal = open_journal()
    async with Recorder(repository, journal, interval_s=0.01, retry_s=0.01) as recorder:
        for _ in range(8):
            recorder.record(a_record())
            await recorder.flush()
        await eventually(lambda: recorder.journaled == 8)
        assert (recorder.refused, recorder.set_aside, recorder.dropped) == (0, 0, 0)
        assert not recorder.database_available


class LosesConnection(Repository):
    """A repository whose server ends the connection at each record of the application `stuck`.

    `probes` are the results of the next probes, True by default.
    """

    def __init__(self, engine):
        super().__init__(engine)
        self.probes = []

    async def write(self, records):
        if any(record.app == "stuck" for record in records):
            raise DatabaseUnavailable("the server closed the connection")
        return await super().write(records)

    async def probe(self):
        if self.probes and not self.probes.pop(0):
            raise DatabaseUnavailable("away")


async def test_record_that_ends_the_connection_is_refused_at_last(engine, open_journal, a_record, rows, eventually):
    journal = open_journal()
    journal.append([msgspec.json.encode(a_record(app=app)) for app in ("mail", "stuck", "mail")])
    async with Recorder(LosesConnection(engine), journal, interval_s=0.01, retry_s=0.01) as recorder:
        await eventually(lambda: journal.size_bytes == 0)
    assert (recorder.replayed, recorder.refused, recorder.set_aside) == (2, 1, 0)
    assert await rows(COUNT) == [(2, 2)]


async def test_segment_that_fails_again_and_again_is_set_aside(
    engine, open_journal, a_record, rows, tmp_path, eventually
):
    journal = open_journal()
    journal.append([msgspec.json.encode(a_record(app="stuck"))])
    journal.append_refused(b"{}")
    repository = LosesConnection(engine)
    repository.probes = [True] * SUSPECT_AFTER_FAILURES + [False, True] * MAX_SEGMENT_FAILURES
    async with Recorder(repository, journal, interval_s=0.01, retry_s=0.01) as recorder:
        await eventually(lambda: recorder.set_aside == 1)
        assert recorder.last_error == "the server closed the connection"
        recorder.record(a_record())
        await eventually(lambda: recorder.written + recorder.replayed == 1)
    assert (recorder.refused, recorder.dropped) == (0, 0)
    assert await rows(COUNT) == [(1, 1)]
    assert sorted(path.name for path in (tmp_path / "journal").iterdir()) == ["00000001.failed", "refused.jsonl"]


async def test_invalid_lines_do_not_block_the_journal(repository, open_journal, a_record, rows, eventually):
    journal = open_journal()
    sound, poisoned = a_record(), a_record(output_tokens=2**63)
    lines = [msgspec.json.encode(poisoned), b'{"id": "torn', b"\xff", msgspec.json.encode(sound)]
    journal.append(lines)
    async with Recorder(repository, journal, interval_s=0.01) as recorder:
        await eventually(lambda: journal.size_bytes == 0)
    assert (recorder.replayed, recorder.refused) == (1, 3)
    assert await rows(COUNT) == [(1, 1)]


async def test_unreadable_segment_does_not_block_new_records(repository, open_journal, a_record, tmp_path, eventually):
    journal = open_journal()
    journal.append([b"{}"])
    (tmp_path / "journal/00000001.jsonl").unlink()
    async with Recorder(repository, journal, interval_s=0.01) as recorder:
        recorder.record(a_record())
        await eventually(lambda: recorder.written == 1 and recorder.left_segments == 1)


async def test_any_text_of_a_client_is_stored_under_a_bounded_name(
    repository, unreachable, open_journal, a_record, rows, eventually
):
    texts = ["a\0b", "half a pair: \ud800", "x" * 100_000, "\U0001f600" * 3000]
    async with Recorder(unreachable, open_journal(), interval_s=60) as recorder:
        for hostile in texts:
            names = dict.fromkeys(("app", "user", "model", "request_id", "error_code", "finish_reason"), hostile)
            recorder.record(a_record(**names, prompt=hostile))
    assert (recorder.journaled, recorder.refused) == (4, 0)
    async with Recorder(repository, open_journal(), interval_s=0.01) as recorder:
        await eventually(lambda: recorder.replayed == 4)
    assert await rows("SELECT count(DISTINCT name), max(length(name)) FROM end_users") == [(4, 256)]
    assert await rows("SELECT max(length(prompt)) FROM requests") == [(32_768,)]


async def test_features_survive_the_journal(repository, unreachable, open_journal, a_record, rows, eventually):
    features = bytes(range(256))
    async with Recorder(unreachable, open_journal(), interval_s=60) as recorder:
        recorder.record(a_record(features=features, features_version="1:off", template="c0ffee"))
    async with Recorder(repository, open_journal(), interval_s=0.01) as recorder:
        await eventually(lambda: recorder.replayed == 1)
    assert await rows("SELECT features, features_version, template FROM requests") == [(features, "1:off", "c0ffee")]
