"""The load of the benchmark: chat requests, a fixed number in flight or at a fixed rate."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from random import Random

from bench.load_client import LoadClient, LoadError, TimedAnswer
from bench.overhead.engine import MODEL
from bench.overhead.prompts import Prompt

TIMEOUT_S = 120.0

HELD_MS = 600_000
"""Pace of a stream that sends its first chunk and then nothing."""

OPENING_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """The form of the answers.

    Attributes:
        chunks: chunks of a stream; 0 requests JSON.
        pace_ms: time between two chunks.
    """

    chunks: int = 0
    pace_ms: int = 0

    def body(self, prompt: Prompt) -> bytes:
        """Return a request that the canned engine answers in this form."""
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.text}]
        fields: dict[str, object] = {"model": MODEL, "messages": messages, "user": prompt.user}
        if self.chunks:
            fields |= {"stream": True, "max_tokens": self.chunks, "seed": self.pace_ms}
        return json.dumps(fields, separators=(",", ":")).encode()


class WrongAnswer(LoadError):
    """An answer is not the canned one, so the measurement is void."""


class ChatLoad:
    """Sends chat requests to one address.

    Args:
        client: sends them.
        url: base URL without `/v1`.
        key: API key of the caller.
        prompts: used in turn.
    """

    def __init__(self, client: LoadClient, url: str, key: str, prompts: Sequence[Prompt]) -> None:
        self._client = client
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"}
        self._prompts: Iterator[Prompt] = cycle(prompts)

    async def send(self, shape: AnswerShape) -> TimedAnswer:
        """Send one request and return its answer.

        Raises:
            LoadError: the answer is incomplete or wrong.
            TimeoutError: the answer took too long.
        """
        answer = await self._client.timed_post(self._url, shape.body(next(self._prompts)), self._headers)
        _check(answer.status, answer.body, shape)
        return answer

    async def closed_loop(
        self, shape: AnswerShape, *, requests: int, at_once: int, spread_s: float = 0.0
    ) -> list[float]:
        """Keep `at_once` requests in flight until all are answered; return their TTFTs in seconds.

        The first requests start evenly over `spread_s`. If every answer takes `spread_s`, so do the later ones.
        """
        left = iter(range(requests))
        ttfts_s: list[float] = []

        async def worker(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            for _ in left:
                ttfts_s.append((await self.send(shape)).ttft_s)

        async with asyncio.TaskGroup() as group:
            for i in range(at_once):
                group.create_task(worker(spread_s * i / at_once))
        return ttfts_s

    @asynccontextmanager
    async def held_streams(self, count: int) -> AsyncGenerator[None]:
        """Hold streams open that send their first chunk and then nothing."""
        shape = AnswerShape(chunks=2, pace_ms=HELD_MS)
        gate = asyncio.Semaphore(OPENING_AT_ONCE)

        async def hold(stack: AsyncExitStack) -> None:
            async with gate:
                request = self._client.post(self._url, shape.body(next(self._prompts)), self._headers)
                response = await stack.enter_async_context(request)
                _check_status(response.status, await response.read_some())

        async with AsyncExitStack() as stack:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(hold(stack))
            yield


async def poisson_load(loads: Sequence[ChatLoad], *, rate: float, seconds: float, seed: int) -> list[list[float]]:
    """Send JSON requests at random times, each to a random target; return the E2E seconds of each target.

    Args:
        loads: one for each target.
        rate: mean requests per second to each target.
        seconds: duration.
        seed: of times and targets.
    """
    draw = Random(seed)
    e2e_s: list[list[float]] = [[] for _ in loads]

    async def send(target: int) -> None:
        e2e_s[target].append((await loads[target].send(AnswerShape())).e2e_s)

    loop = asyncio.get_running_loop()
    at_s, end_s = loop.time(), loop.time() + seconds
    async with asyncio.TaskGroup() as group:
        while (at_s := at_s + draw.expovariate(rate * len(loads))) < end_s:
            await asyncio.sleep(max(0.0, at_s - loop.time()))
            group.create_task(send(draw.randrange(len(loads))))
    return e2e_s


def _check(status: int, body: bytes, shape: AnswerShape) -> None:
    _check_status(status, body)
    complete = body.rstrip().endswith(b"[DONE]" if shape.chunks else b"}")
    if not complete or (shape.chunks and body.count(b'" word"') != shape.chunks):
        raise WrongAnswer(f"the answer is not complete: {body[-200:].decode(errors='replace')}")


def _check_status(status: int, body: bytes) -> None:
    if status != 200:
        raise WrongAnswer(f"status {status}: {body[:200].decode(errors='replace')}")
