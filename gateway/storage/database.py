"""Connections to Postgres, and the exceptions that they raise."""

from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from gateway.database_url import parse_database_url

DATABASE_ERRORS = (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
"""The exceptions of a database that is unreachable or in a wrong state."""

CONNECT_TIMEOUT_S = 5
"""Longest wait for a connection, unless the URL says otherwise with `connect_timeout`."""

_COMMAND_TIMEOUT_S = 60


def create_database_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """Create an engine for `url` (`postgresql://…`). It connects when it is first used.

    Its error messages do not contain parameters, because prompts are among them.

    Raises:
        DatabaseUrlError: the URL is wrong.
    """
    return create_async_engine(
        _DRIVER,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args=_connect_arguments(url, _COMMAND_TIMEOUT_S),
    )


def create_single_use_engine(url: str) -> AsyncEngine:
    """Create an engine without a pool, whose commands may take any time: for migrations.

    Raises:
        DatabaseUrlError: the URL is wrong.
    """
    return create_async_engine(_DRIVER, poolclass=NullPool, connect_args=_connect_arguments(url, None))


_DRIVER = "postgresql+asyncpg://"


def _connect_arguments(url: str, command_timeout_s: float | None) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect`. Options of the URL win over ours, except for the time zone."""
    parsed = parse_database_url(url)
    numbers = dict(parsed.numbers)
    # As in libpq, a timeout of 0 means no limit.
    timeout_s = numbers.pop("connect_timeout", CONNECT_TIMEOUT_S) or None
    command_timeout_s = numbers.pop("command_timeout", None) or command_timeout_s
    return {
        "dsn": parsed.tls_dsn,
        **parsed.address,
        **parsed.driver,
        **numbers,
        "timeout": timeout_s,
        "command_timeout": command_timeout_s,
        "server_settings": {"application_name": "magnus", **parsed.server_settings, "timezone": "UTC"},
    }
