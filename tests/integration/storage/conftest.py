import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.storage.record import RequestRecord


@pytest.fixture
def a_record() -> Callable[..., RequestRecord]:
    """Return a function that creates a record of an ordinary request. Its arguments replace fields."""

    def build(**changed: Any) -> RequestRecord:
        ordinary: dict[str, Any] = {
            "id": str(uuid4()),
            "request_id": "req-1",
            "arrived_at": datetime(2025, 3, 1, 12, tzinfo=UTC),
            "app": "translate",
            "user": "ann",
            "model": "llama",
            "route": "/v1/chat/completions",
            "stream": False,
            "status": "ok",
            "http_status": 200,
            "prompt_bytes": 400,
            "input_tokens": 100,
            "output_tokens": 50,
        }
        return RequestRecord(**(ordinary | changed))

    return build


@pytest.fixture
def rows(engine: AsyncEngine) -> Callable[[str], Awaitable[list[tuple[Any, ...]]]]:
    """Return a function that runs a query and returns its rows."""

    async def fetch(query: str) -> list[tuple[Any, ...]]:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]

    return fetch


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Return a function that waits until a condition is true, or fails at the deadline."""

    async def wait(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110  a counter sets no event
                await asyncio.sleep(0.01)

    return wait
