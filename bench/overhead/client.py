"""The clients: as many requests at once as a scenario says, or at its rate, over connections that are kept."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from random import Random
from time import perf_counter

import aiohttp

from bench.overhead.engine import MODEL

TIMEOUT_S = 120.0
KEPT_S = 2.0
"""How long an idle connection is kept: less than any server keeps it, so that none closes one that is being used."""

HELD_MS = 600_000
"""Pace of a stream that sends its first chunk and then nothing."""

OPENING_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks, and for whom."""

    system: str
    text: str
    user: str


@dataclass(frozen=True, slots=True)
class Shape:
    """In which form answers come; `chunks` is 0 where they are no streams."""

    chunks: int = 0
    pace_ms: int = 0

    def body(self, prompt: Prompt) -> bytes:
        """Return a request for such an answer."""
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.text}]
        fields: dict[str, object] = {"model": MODEL, "messages": messages, "user": prompt.user}
        if self.chunks:
            fields |= {"stream": True, "max_tokens": self.chunks, "seed": self.pace_ms}
        return json.dumps(fields, separators=(",", ":")).encode()


class BadAnswer(RuntimeError):
    """An answer that is not the canned one: what was measured is worth nothing."""


class Clients:
    """Sends requests to one address.

    Args:
        session: of the connections.
        url: up to and without `/v1`.
        key: the caller's.
        prompts: taken in turn.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str, prompts: Sequence[Prompt]) -> None:
        self._session = session
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._prompts: Iterator[Prompt] = cycle(prompts)

    async def ask(self, shape: Shape) -> tuple[float, float]:
        """Send one request and read its answer; return TTFT and E2E in seconds.

        Raises:
            BadAnswer: it is not whole.
        """
        body = shape.body(next(self._prompts))
        start_s = perf_counter()  # uvloop's own time goes in milliseconds
        async with self._session.post(self._url, data=body, headers=self._headers) as response:
            first = await response.content.readany()
            ttft_s = perf_counter() - start_s
            rest = await response.content.read()
            e2e_s = perf_counter() - start_s
        whole = first + rest
        _check(response.status, whole, shape)
        return ttft_s, e2e_s

    async def closed_loop(self, shape: Shape, *, requests: int, at_once: int, spread_s: float = 0.0) -> list[float]:
        """Send requests, each as soon as one before it is answered; return their TTFTs in seconds.

        The first ones come evenly over `spread_s`; where all answers take as long as that, so do those that follow.
        """
        left = iter(range(requests))
        ttfts_s: list[float] = []

        async def client(at_s: float) -> None:
            await asyncio.sleep(at_s)
            for _ in left:
                ttfts_s.append((await self.ask(shape))[0])

        async with asyncio.TaskGroup() as group:
            for i in range(at_once):
                group.create_task(client(spread_s * i / at_once))
        return ttfts_s

    @asynccontextmanager
    async def held_streams(self, count: int) -> AsyncGenerator[None]:
        """Hold streams open of which nothing comes but the first chunk."""
        body = Shape(chunks=2, pace_ms=HELD_MS)
        gate = asyncio.Semaphore(OPENING_AT_ONCE)

        async def hold(stack: AsyncExitStack) -> None:
            async with gate:
                request = self._session.post(self._url, data=body.body(next(self._prompts)), headers=self._headers)
                response = await stack.enter_async_context(request)
                _check_status(response.status, await response.content.readany())

        async with AsyncExitStack() as stack:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(hold(stack))
            yield


async def take_turns(targets: Sequence[Clients], *, rate: float, seconds: float, seed: int) -> list[list[float]]:
    """Send JSON requests at random times, each to one of the targets by lot; return their E2E in seconds, by target."""
    lots = Random(seed)
    e2e_s: list[list[float]] = [[] for _ in targets]

    async def send(target: int) -> None:
        e2e_s[target].append((await targets[target].ask(Shape()))[1])

    loop = asyncio.get_running_loop()
    at_s, end_s = loop.time(), loop.time() + seconds
    async with asyncio.TaskGroup() as group:
        while (at_s := at_s + lots.expovariate(rate * len(targets))) < end_s:
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            group.create_task(send(lots.randrange(len(targets))))
    return e2e_s


@asynccontextmanager
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    """Open a session with as many connections as there are requests."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S)
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as opened:
        yield opened


def _check(status: int, body: bytes, shape: Shape) -> None:
    _check_status(status, body)
    whole = body.rstrip().endswith(b"[DONE]") if shape.chunks else body.rstrip().endswith(b"}")
    if not whole or (shape.chunks and body.count(b'" word"') != shape.chunks):
        raise BadAnswer(f"not the whole answer came: {body[-200:].decode(errors='replace')}")


def _check_status(status: int, body: bytes) -> None:
    if status != 200:
        raise BadAnswer(f"status {status}: {body[:200].decode(errors='replace')}")
