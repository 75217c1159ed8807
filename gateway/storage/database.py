"""Connections to Postgres, and the exceptions that they raise."""

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

DATABASE_ERRORS = (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError)
"""The exceptions of a database that is unreachable or in a wrong state."""

CONNECT_TIMEOUT_S = 5
_COMMAND_TIMEOUT_S = 60


def create_database_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """Create an engine for `url` (`postgresql+asyncpg://…`). It connects when it is first used.

    Its error messages do not contain parameters, because prompts are among them.
    """
    return create_async_engine(
        url,
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": _COMMAND_TIMEOUT_S,
            "server_settings": {"application_name": "magnus", "timezone": "UTC"},
        },
    )
