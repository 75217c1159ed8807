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
    """Builds records of an ordinary request, but for what the test says."""

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
    """Runs a query and gives its rows."""

    async def fetch(query: str) -> list[tuple[Any, ...]]:
        async with engine.connect() as connection:
            return [tuple(row) for row in await connection.execute(text(query))]

    return fetch


@pytest.fixture
def eventually() -> Callable[..., Awaitable[None]]:
    """Waits until a condition holds; fails when it does not within the deadline."""

    async def wait(condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
        async with asyncio.timeout(deadline_s):
            while not condition():  # noqa: ASYNC110  a counter sets no event
                await asyncio.sleep(0.01)

    return wait
