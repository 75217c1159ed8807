"""Deletes end users: on request, and when no request of theirs is kept any more."""

from collections.abc import Sequence
from datetime import UTC, date, datetime

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.errors import HistoryUnavailable
from gateway.storage.database import DATABASE_ERRORS
from gateway.storage.record import RequestRecord
from gateway.storage.recorder import Recorder
from gateway.stored_text import stored_text

CHUNK_NAMES = 500
"""Names that are deleted in one transaction, because new requests cannot be written meanwhile."""


class Erased(msgspec.Struct, frozen=True):
    """How many requests of one end user were deleted: rows of the database, and records on the way to it."""

    requests: int
    pending: int


class UserEraser:
    """Deletes everything that is stored of one end user of an application."""

    def __init__(self, engine: AsyncEngine, recorder: Recorder) -> None:
        self._engine = engine
        self._recorder = recorder

    async def erase(self, app: str, user: str) -> Erased:
        """Delete the user's requests, also those in memory and in the journal, and then the user.

        Raises:
            HistoryUnavailable: the database is unavailable; nothing was deleted from it. Try again later.
        """
        app, user = stored_text(app), stored_text(user)
        quoted = msgspec.json.encode(user)

        def matches(record: RequestRecord) -> bool:
            return (record.app, record.user) == (app, user)

        def matches_line(line: bytes) -> bool:
            try:
                return matches(_record_of(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                return quoted in line or user.encode() in line

        async with self._recorder.paused():
            try:
                requests = await erase_rows(self._engine, app, user)
            except DATABASE_ERRORS as error:
                raise HistoryUnavailable(
                    "The database is unavailable, so the user is not deleted; try again"
                ) from error
            pending = await self._recorder.erase(matches, matches_line)
        return Erased(requests, pending)


def _record_of(line: bytes) -> RequestRecord:
    """Decode a line of the journal, or of the refused records."""
    if line.startswith(b'{"error":'):
        return msgspec.json.decode(line, type=_RefusedLine).record
    return msgspec.json.decode(line, type=RequestRecord)


class _RefusedLine(msgspec.Struct):
    record: RequestRecord


async def erase_rows(engine: AsyncEngine, app: str, user: str) -> int:
    """Delete an end user and the user's requests. Return the number of requests."""
    names = {"app": app, "user": user}
    async with engine.begin() as connection:
        # A running write has this lock too. It may add a request of the user until it ends.
        await connection.execute(text("LOCK TABLE end_users IN SHARE ROW EXCLUSIVE MODE"))
        deleted = await connection.execute(_DELETE_REQUESTS, names)
        await connection.execute(_DELETE_USER, names)
    return deleted.rowcount


async def delete_unused_names(engine: AsyncEngine, first_kept: date) -> int:
    """Delete end users and applications that are older than `first_kept` and have no requests. Return their number.

    Applications with API keys are kept.
    """
    first = datetime(first_kept.year, first_kept.month, first_kept.day, tzinfo=UTC)
    deleted = 0
    for find, delete in ((_UNUSED_USERS, _DELETE_USERS), (_UNUSED_APPLICATIONS, _DELETE_APPLICATIONS)):
        async with engine.connect() as connection:
            ids = (await connection.scalars(text(find), {"first": first})).all()
        for start in range(0, len(ids), CHUNK_NAMES):
            deleted += await _delete_if_unused(engine, delete, ids[start : start + CHUNK_NAMES])
    return deleted


async def _delete_if_unused(engine: AsyncEngine, statement: str, ids: Sequence[int]) -> int:
    """Delete these rows, unless one was used since it was found. Running writes end first."""
    async with engine.begin() as connection:
        await connection.execute(text("LOCK TABLE applications, end_users IN SHARE ROW EXCLUSIVE MODE"))
        return (await connection.execute(text(statement), {"ids": list(ids)})).rowcount


_DELETE_REQUESTS = text("""
    DELETE FROM requests USING end_users, applications
    WHERE requests.end_user_id = end_users.id AND end_users.application_id = applications.id
        AND applications.name = :app AND end_users.name = :user
""")

_DELETE_USER = text("""
    DELETE FROM end_users USING applications
    WHERE application_id = applications.id AND applications.name = :app AND end_users.name = :user
""")

_USER_IS_UNUSED = "NOT EXISTS (SELECT FROM requests WHERE end_user_id = end_users.id)"
_APPLICATION_IS_UNUSED = """NOT EXISTS (SELECT FROM requests WHERE application_id = applications.id)
    AND NOT EXISTS (SELECT FROM end_users WHERE application_id = applications.id)
    AND NOT EXISTS (SELECT FROM api_keys WHERE application_id = applications.id)"""
_UNUSED_USERS = f"SELECT id FROM end_users WHERE created_at < :first AND {_USER_IS_UNUSED}"
_UNUSED_APPLICATIONS = f"SELECT id FROM applications WHERE created_at < :first AND {_APPLICATION_IS_UNUSED}"
_DELETE_USERS = f"DELETE FROM end_users WHERE id = ANY(:ids) AND {_USER_IS_UNUSED}"
_DELETE_APPLICATIONS = f"DELETE FROM applications WHERE id = ANY(:ids) AND {_APPLICATION_IS_UNUSED}"
