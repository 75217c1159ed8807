"""Streams chat completions at planned times, from an engine or from a gateway."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.load_client import LoadClient, LoadError, load_client
from bench.reality.anchor import StreamLog
from bench.reality.rows import Row

MODEL = "tiny"
TIMEOUT_S = 600.0

_COMPLETION = re.compile(rb'"completion_tokens":\s*(\d+)')
_PROMPT = re.compile(rb'"prompt_tokens":\s*(\d+)')


@dataclass(frozen=True, slots=True)
class ReplayedAnswer:
    """The answer to one row. Times are in seconds since the start of the run.

    Attributes:
        row: the request.
        planned_s: when the request had to be sent.
        sent_s: when it was sent.
        first_s: when the first byte arrived.
        done_s: when the last byte arrived.
        prompt_tokens: as the engine counts them.
        output_tokens: as the engine counts them.
        error: why there is no answer; None if there is one.
    """

    row: Row
    planned_s: float
    sent_s: float
    first_s: float
    done_s: float
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


async def replay(
    url: str, rows: Sequence[Row], times_s: Sequence[float], on_all_sent: Callable[[], Awaitable[None]]
) -> list[ReplayedAnswer]:
    """Send every row at its time and return the answers in the order of the rows.

    Args:
        url: base URL without `/v1`.
        rows: the requests.
        times_s: seconds since the start at which each one is sent.
        on_all_sent: awaited once the last request is sent.
    """
    loop = asyncio.get_running_loop()
    async with load_client(TIMEOUT_S) as client, asyncio.TaskGroup() as group:
        start_s = loop.time()
        tasks = []
        for row, planned_s in zip(rows, times_s, strict=True):
            await asyncio.sleep(max(0.0, start_s + planned_s - loop.time()))
            tasks.append(group.create_task(_send(client, url, row, start_s, planned_s)))
        await on_all_sent()
    return [task.result() for task in tasks]


async def _send(client: LoadClient, url: str, row: Row, start_s: float, planned_s: float) -> ReplayedAnswer:
    loop = asyncio.get_running_loop()
    sent_s = loop.time() - start_s
    try:
        answer = await client.timed_post(
            f"{url}/v1/chat/completions", json.dumps(body_of(row)).encode(), headers_of(row)
        )
    except (LoadError, TimeoutError) as failure:
        done_s = loop.time() - start_s
        return ReplayedAnswer(row, planned_s, sent_s, done_s, done_s, error=str(failure) or type(failure).__name__)
    prompt, output = last_count(_PROMPT, answer.body), last_count(_COMPLETION, answer.body)
    error = None if output is not None else "the stream has no usage"
    if answer.status != 200:
        error = f"status {answer.status}: {answer.body[:200].decode(errors='replace')}"
    first_s, done_s = sent_s + answer.ttft_s, sent_s + answer.e2e_s
    return ReplayedAnswer(row, planned_s, sent_s, first_s, done_s, prompt or 0, output or 0, error)


async def record_stream(
    client: LoadClient, url: str, body: dict[str, Any], log: StreamLog, started: asyncio.Event
) -> None:
    """Stream one answer and log when its tokens arrive; set `started` at the first.

    The usage on every chunk gives the exact number of tokens.
    """
    loop = asyncio.get_running_loop()
    options = {"include_usage": True, "continuous_usage_stats": True}
    request = json.dumps(body | {"stream_options": options}).encode()
    async with client.post(f"{url}/v1/chat/completions", request) as response:
        if response.status != 200:
            await response.successful()
        async for data in response:
            if count := last_count(_COMPLETION, data):
                log.add(loop.time(), count)
                started.set()


async def prompt_tokens(client: LoadClient, url: str, row: Row) -> int:
    """Return the number of prompt tokens by the engine's own tokenizer and chat template."""
    body = json.dumps({"model": MODEL, "messages": row.messages}).encode()
    async with client.post(f"{url}/tokenize", body) as response:
        count: int = (await response.json())["count"]
        return count


def body_of(row: Row) -> dict[str, Any]:
    """Return a chat request without any length, as an application sends it."""
    return {
        "model": MODEL,
        "messages": row.messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def headers_of(row: Row) -> dict[str, str]:
    """Return the header that names the application to the gateway. An engine ignores it."""
    return {"x-app-id": row.app}


def last_count(pattern: re.Pattern[bytes], data: bytes) -> int | None:
    """Return the last number that the pattern finds."""
    found = pattern.findall(data)
    return int(found[-1]) if found else None
