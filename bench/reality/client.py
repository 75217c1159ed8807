"""Streams chat completions, at the times of a plan, from an engine or from a gateway: they look alike."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench.reality.anchor import StreamLog
from bench.reality.rows import Row

MODEL = "tiny"
TIMEOUT = aiohttp.ClientTimeout(total=600)
TAIL_BYTES = 4096
"""Enough for a stream's last event, which has the usage."""

_COMPLETION = re.compile(rb'"completion_tokens":\s*(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s*(\d+)')


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one row; times in seconds from the run's start, `planned_s` when it was to be sent."""

    row: Row
    planned_s: float
    sent_s: float
    first_s: float
    done_s: float
    prompt_tokens: int
    output_tokens: int
    error: str | None = None

    @property
    def e2e_s(self) -> float:
        """From when it was to be sent: a client that is late makes nobody faster."""
        return self.done_s - self.planned_s

    @property
    def ttft_s(self) -> float:
        """To the first byte."""
        return self.first_s - self.planned_s


@asynccontextmanager
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    """Open connections without limit, and without a proxy."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=TIMEOUT, trust_env=False) as opened:
        yield opened


async def replay(
    url: str, rows: Sequence[Row], times_s: Sequence[float], on_all_sent: Callable[[], Awaitable[None]]
) -> list[Answer]:
    """Send every row at its time, and return the answers in the rows' order; tell when the last one was sent."""
    loop = asyncio.get_running_loop()
    async with session() as http, asyncio.TaskGroup() as group:
        start_s = loop.time()
        tasks = []
        for row, planned_s in zip(rows, times_s, strict=True):
            await asyncio.sleep(max(0.0, start_s + planned_s - loop.time()))
            tasks.append(group.create_task(_send(http, url, row, start_s, planned_s)))
        await on_all_sent()
    return [task.result() for task in tasks]


async def _send(http: aiohttp.ClientSession, url: str, row: Row, start_s: float, planned_s: float) -> Answer:
    loop = asyncio.get_running_loop()
    sent_s, first_s, tail = loop.time() - start_s, None, b""
    error: str | None = None
    try:
        async with http.post(f"{url}/v1/chat/completions", json=body_of(row), headers=headers_of(row)) as response:
            async for data in response.content.iter_any():
                first_s = loop.time() - start_s if first_s is None else first_s
                tail = (tail + data)[-TAIL_BYTES:]
            if response.status != 200:
                error = f"{response.status} {tail[:200].decode(errors='replace')}"
    except (aiohttp.ClientError, TimeoutError) as failure:
        error = type(failure).__name__
    done_s = loop.time() - start_s
    prompt, output = last_count(_PROMPT, tail), last_count(_COMPLETION, tail)
    if error is None and output is None:
        error = "a stream without usage"
    first_s = done_s if first_s is None else first_s
    return Answer(row, planned_s, sent_s, first_s, done_s, prompt or 0, output or 0, error)


async def watch(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any], log: StreamLog, started: asyncio.Event
) -> None:
    """Stream one answer and note when each of its tokens came; usage on every chunk counts them exactly."""
    loop = asyncio.get_running_loop()
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with http.post(f"{url}/v1/chat/completions", json=body | {"stream_options": options}) as response:
        response.raise_for_status()
        async for data in response.content.iter_any():
            if count := last_count(_COMPLETION, data):
                log.add(loop.time(), count)
                started.set()


async def prompt_tokens(http: aiohttp.ClientSession, url: str, row: Row) -> int:
    """Count a row's prompt with the engine's own tokenizer and chat template."""
    async with http.post(f"{url}/tokenize", json={"model": MODEL, "messages": row.messages}) as response:
        response.raise_for_status()
        count: int = (await response.json())["count"]
        return count


def body_of(row: Row) -> dict[str, Any]:
    """What an application sends: it knows no length."""
    return {
        "model": MODEL,
        "messages": row.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def headers_of(row: Row) -> dict[str, str]:
    """Name the application, as a client of the gateway does; an engine does not mind."""
    return {"x-app-id": row.app}


def last_count(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    """Return the last number that the pattern finds."""
    found = pattern.findall(data)
    return int(found[-1]) if found else None
