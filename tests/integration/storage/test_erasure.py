from datetime import UTC, date, datetime, timedelta

import msgspec
import pytest
from sqlalchemy import text

from gateway.errors import HistoryUnavailable
from gateway.storage.database import create_database_engine
from gateway.storage.erasure import Erased, UserEraser, delete_unused_names
from gateway.storage.journal import Journal
from gateway.storage.keys import KeyStore
from gateway.storage.recorder import Recorder
from gateway.storage.repository import Repository

TODAY = date(2025, 3, 1)
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("user", ["ann", "a/b?c", "x" * 6000, "nul \0", "übel \U0001f600"])
async def test_erased_user_is_in_no_table_and_no_file(repository, engine, a_record, rows, tmp_path, user):
    others = [a_record(user="bob"), a_record(app="mail", user=user), a_record(user=None)]
    await repository.write([a_record(user=user), a_record(user=user, prompt="secret"), *others])
    journal = Journal(tmp_path)
    journal.append([msgspec.json.encode(a_record(user=name)) for name in (user, "bob")])
    journal.set_aside(journal.oldest())
    journal.append([msgspec.json.encode(a_record(user=name)) for name in (user, user, "bob")])
    recorder = Recorder(repository, journal, interval_s=60)
    recorder.record(a_record(user=user, output_tokens=2**70))
    await recorder.flush()
    recorder.record(a_record(user=user))
    recorder.record(a_record(user="bob"))
    eraser = UserEraser(engine, recorder)
    assert await eraser.erase("translate", user) == Erased(requests=2, pending=5)
    assert await eraser.erase("translate", user) == Erased(requests=0, pending=0)
    assert recorder.pending == 1
    assert await rows("SELECT count(*) FROM requests") == [(3,)]
    assert await rows("SELECT applications.name FROM end_users JOIN applications ON application_id = applications.id"
                      " ORDER BY 1") == [("mail",), ("translate",)]  # fmt: skip
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir()).splitlines()
    assert [msgspec.json.decode(line)["user"] for line in left] == ["bob", "bob"]
    await recorder.aclose()


async def test_nothing_is_erased_while_the_database_is_away(a_record, tmp_path):
    engine = create_database_engine(f"postgresql://postgres@/magnus?host={tmp_path}")
    recorder = Recorder(Repository(engine), Journal(tmp_path / "journal"), interval_s=60)
    recorder.record(a_record())
    with pytest.raises(HistoryUnavailable):
        await UserEraser(engine, recorder).erase("translate", "ann")
    assert recorder.pending == 1
    await recorder.aclose()


async def made_on(engine, day):
    async with engine.begin() as connection:
        for table in ("end_users", "applications"):
            await connection.execute(text(f"UPDATE {table} SET created_at = :day"), {"day": day})


async def test_old_names_without_requests_are_deleted(engine, repository, a_record, rows):
    gone = [a_record(app="gone", user=f"user-{number}") for number in range(3)]
    await repository.write([*gone, a_record(app="kept", user="gone"), a_record(app="keyed", user=None)])
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM requests"))
    await KeyStore(engine).create("keyed")
    await repository.write([a_record(app="kept", user="kept")])
    await made_on(engine, NOON - timedelta(days=100))
    await repository.write([a_record(app="new", user="new")])
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM requests WHERE model = 'llama' AND application_id ="
                                      " (SELECT id FROM applications WHERE name = 'new')"))  # fmt: skip
    assert await delete_unused_names(engine, TODAY - timedelta(days=90)) == 5
    assert await rows("SELECT name FROM applications ORDER BY name") == [("kept",), ("keyed",), ("new",)]
    assert await rows("SELECT name FROM end_users ORDER BY name") == [("kept",), ("new",)]


async def test_request_of_a_deleted_user_creates_the_user_again(engine, repository, a_record, rows):
    await repository.write([a_record()])
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM requests"))
    await made_on(engine, NOON - timedelta(days=100))
    assert await delete_unused_names(engine, TODAY) == 2
    await repository.write([a_record()])
    assert await rows("SELECT name FROM end_users") == [("ann",)]
