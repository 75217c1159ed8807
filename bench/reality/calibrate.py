"""A short closed-loop load on the engine, of a few to many streams at once, to learn what its steps cost."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle

import aiohttp

from bench.reality.anchor import StreamLog, samples_of
from bench.reality.client import body_of, prompt_tokens, watch
from bench.reality.engine import CONTEXT_TOKENS, KV_TOKENS, read_counters
from bench.reality.fit import Sample
from bench.reality.rows import Row

STREAMS = (0, 1, 2, 4, 8, 12, 16, 20, 24, 32, 44)
"""Streams beside the anchor, one level after the other."""

LEVEL_S = 2.5
SETTLE_S = 0.3
"""Left out of each level: connections are opened, and all prompts come at once."""

SEGMENT_STEPS = 8
KV_SHARE = 0.9
"""Of the KV memory, what all streams of a level would fill if all were at their ends at once: nothing is preempted."""

SHORTEST_ANSWER = 16

COUNTERS = 16
"""Prompts that are counted at once."""


async def count_prompts(http: aiohttp.ClientSession, url: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the engine's own counts of their prompts' tokens."""
    turns = asyncio.Semaphore(COUNTERS)

    async def counted(row: Row) -> Row:
        async with turns:
            return replace(row, prompt_tokens=await prompt_tokens(http, url, row))

    return list(await asyncio.gather(*map(counted, rows)))


async def measure_steps(
    http: aiohttp.ClientSession, url: str, rows: Sequence[Row], on_level: Callable[[int], None]
) -> list[Sample]:
    """Run all levels and return their samples; a level in which the engine preempted has none.

    Args:
        http: to send by.
        url: of the engine.
        rows: with their prompts counted; which of them a level takes depends on the room for each.
        on_level: told how many streams the next level has.
    """
    samples: list[Sample] = []
    for streams in STREAMS:
        on_level(streams)
        before = await read_counters(http, url)
        level = await _level(http, url, rows, streams)
        if not (await read_counters(http, url)).since(before).preemptions:
            samples += level
    return samples


async def _level(http: aiohttp.ClientSession, url: str, rows: Sequence[Row], streams: int) -> list[Sample]:
    anchor_row = min(rows, key=lambda row: row.prompt_tokens)
    room = KV_SHARE * KV_TOKENS / (streams + 1)
    source = cycle(row for row in rows if row.final_tokens <= room and row.output_tokens >= SHORTEST_ANSWER)
    anchor, logs, started = StreamLog(anchor_row.prompt_tokens), list[StreamLog](), asyncio.Event()
    async with _streaming(http, url, anchor_row, anchor, started), asyncio.timeout(30):
        await started.wait()
        workers = [asyncio.create_task(_work(http, url, source, logs)) for _ in range(streams)]
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
    http: aiohttp.ClientSession, url: str, row: Row, log: StreamLog, started: asyncio.Event
) -> AsyncGenerator[None]:
    """Keep one long answer coming until the block ends; then hang up, which aborts it."""
    body = _limited(row, CONTEXT_TOKENS - row.prompt_tokens - 1)
    task = asyncio.create_task(watch(http, url, body, log, started))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _work(http: aiohttp.ClientSession, url: str, rows: Iterator[Row], logs: list[StreamLog]) -> None:
    for row in rows:
        log = StreamLog(row.prompt_tokens)
        logs.append(log)
        await watch(http, url, _limited(row, row.output_tokens), log, asyncio.Event())


def _limited(row: Row, tokens: int) -> dict[str, object]:
    """A request that says how long its answer is: in a calibration nobody is to guess."""
    return body_of(row) | {"max_tokens": tokens, "ignore_eos": True}
