from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from gateway.storage.database import create_database_engine
from gateway.storage.embedded import EmbeddedPostgres
from gateway.storage.journal import Journal
from gateway.storage.migrate import upgrade
from gateway.storage.recorder import Recorder
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


@pytest.mark.parametrize("prompt", ["a\0b", "half a pair: \ud800"])
async def test_only_the_invalid_record_of_a_batch_is_refused(
    repository, open_journal, a_record, rows, tmp_path, prompt
):
    async with Recorder(repository, open_journal(), interval_s=60) as recorder:
        for index in range(100):
            recorder.record(a_record(prompt=prompt if index in (3, 50) else "sound"))
    assert (recorder.written, recorder.refused, recorder.dropped) == (98, 2, 0)
    assert await rows(COUNT) == [(98, 98)]
    assert len((tmp_path / "journal/refused.jsonl").read_bytes().splitlines()) == 2


async def test_invalid_lines_do_not_block_the_journal(repository, open_journal, a_record, rows, eventually):
    journal = open_journal()
    sound, poisoned = a_record(), a_record(prompt="a\0b")
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


async def test_record_without_encoding_does_not_block_others(unreachable, open_journal, a_record):
    async with Recorder(unreachable, open_journal(), interval_s=60) as recorder:
        recorder.record(a_record(prompt="half a pair: \ud800"))
        recorder.record(a_record())
    assert (recorder.journaled, recorder.refused) == (1, 1)


async def test_features_survive_the_journal(repository, unreachable, open_journal, a_record, rows, eventually):
    features = bytes(range(256))
    async with Recorder(unreachable, open_journal(), interval_s=60) as recorder:
        recorder.record(a_record(features=features, features_version="1:off", template="c0ffee"))
    async with Recorder(repository, open_journal(), interval_s=0.01) as recorder:
        await eventually(lambda: recorder.replayed == 1)
    assert await rows("SELECT features, features_version, template FROM requests") == [(features, "1:off", "c0ffee")]
