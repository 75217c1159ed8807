"""The connection pool that all of history shares."""

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

CONNECT_TIMEOUT_S = 5
_COMMAND_TIMEOUT_S = 60


def create_history_engine(url: str, *, pool_size: int = 5) -> AsyncEngine:
    """Create the engine for `url` (`postgresql+asyncpg://…`); it connects when it is first used.

    Its errors do not show parameters, among which are prompts.
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
