"""Runs a short closed-loop load with few to many streams, to measure the engine's steps."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle

from bench.load_client import LoadClient
from bench.reality.anchor import StreamLog, samples_of
from bench.reality.engine import CONTEXT_TOKENS, KV_TOKENS, read_counters
from bench.reality.fit import Sample
from bench.reality.replay import body_of, prompt_tokens, record_stream
from bench.reality.rows import Row

STREAMS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 32, 44)
"""Number of streams beside the anchor, for each level."""

LEVEL_S = 2.5
SETTLE_S = 0.3
"""Start of each level that is left out: connections open, and all prompts arrive at once."""

SEGMENT_STEPS = 8
KV_SHARE = 0.9
"""Share of the KV memory that the complete sequences of a level may fill, so that the engine preempts nothing."""

SHORTEST_ANSWER = 16

COUNTED_AT_ONCE = 16


async def count_prompts(client: LoadClient, url: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with their prompt tokens as the engine counts them."""
    turns = asyncio.Semaphore(COUNTED_AT_ONCE)

    async def counted(row: Row) -> Row:
        async with turns:
            return replace(row, prompt_tokens=await prompt_tokens(client, url, row))

    return list(await asyncio.gather(*map(counted, rows)))


async def measure_steps(
    client: LoadClient, url: str, rows: Sequence[Row], on_level: Callable[[int], None]
) -> list[Sample]:
    """Run all levels and return their samples, without those of levels in which the engine preempted.

    Args:
        client: sends the requests.
        url: base URL of the engine.
        rows: requests with known prompt tokens; a level uses those that fit its share of memory.
        on_level: called with the number of streams before each level.
    """
    samples: list[Sample] = []
    for streams in STREAMS:
        on_level(streams)
        before = await read_counters(client, url)
        level = await _level(client, url, rows, streams)
        if not (await read_counters(client, url)).since(before).preemptions:
            samples += level
    return samples


async def _level(client: LoadClient, url: str, rows: Sequence[Row], streams: int) -> list[Sample]:
    anchor_row = min(rows, key=lambda row: row.prompt_tokens)
    room = KV_SHARE * KV_TOKENS / (streams + 1)
    source = cycle(row for row in rows if row.final_tokens <= room and row.output_tokens >= SHORTEST_ANSWER)
    anchor, logs, started = StreamLog(anchor_row.prompt_tokens), list[StreamLog](), asyncio.Event()
    async with _streaming(client, url, anchor_row, anchor, started), asyncio.timeout(30):
        await started.wait()
        workers = [asyncio.create_task(_work(client, url, source, logs)) for _ in range(streams)]
        await asyncio.sleep(SETTLE_S)
        begin = len(anchor.times_s)
        await asyncio.sleep(LEVEL_S)
        end = len(anchor.times_s)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    level = StreamLog(anchor.prompt_tokens, anchor.times_s[begin:end], anchor.counts[begin:end])
    return list(samples_of(level, logs, steps=SEGMENT_STEPS))


@contextlib.asynccontextmanager
async def _streaming(
    client: LoadClient, url: str, row: Row, log: StreamLog, started: asyncio.Event
) -> AsyncGenerator[None]:
    """Stream one long answer until the block ends, and abort it then."""
    body = _limited(row, CONTEXT_TOKENS - row.prompt_tokens - 1)
    task = asyncio.create_task(record_stream(client, url, body, log, started))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _work(client: LoadClient, url: str, rows: Iterator[Row], logs: list[StreamLog]) -> None:
    for row in rows:
        log = StreamLog(row.prompt_tokens)
        logs.append(log)
        await record_stream(client, url, _limited(row, row.output_tokens), log, asyncio.Event())


def _limited(row: Row, tokens: int) -> dict[str, object]:
    """Return a request with a fixed answer length."""
    return body_of(row) | {"max_tokens": tokens, "ignore_eos": True}
