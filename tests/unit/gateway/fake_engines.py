"""Fake engines without sockets: a transport with scripted answers, and an adapter with scripted scrapes."""

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from typing import Any

import httpx2

from backends.base import BackendSpec, EngineError, Snapshot, Translation
from backends.openai_api import is_out_of_memory, read_error
from gateway.fleet.pool import BackendPool

TOKEN = b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
ERROR = b'data: {"error":{"message":"out of memory"}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = (TOKEN, TOKEN, LAST, USAGE, DONE)
WHOLE = b'{"choices":[{"finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}'


class Answer(httpx2.AsyncByteStream):
    """One scripted answer: bytes are chunks, numbers are seconds of silence, an exception ends the answer."""

    def __init__(self, *script: bytes | float | Exception, status: int = 200, kind: str = "text/event-stream") -> None:
        self.script = script
        self.status = status
        self.kind = kind
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.script:
            if isinstance(part, bytes):
                yield part
            elif isinstance(part, Exception):
                raise part
            else:
                await asyncio.sleep(part)

    async def aclose(self) -> None:
        self.closed = True


def whole(body: bytes = WHOLE, status: int = 200) -> Answer:
    return Answer(body, status=status, kind="application/json")


class FakeTransport(httpx2.AsyncBaseTransport):
    """Answers the requests to each host with its script: an answer, an error, or seconds before the next part.

    Attributes:
        sent: (host, request) in order.
        answers: the answers that were sent.
    """

    def __init__(self, **scripts: list[Answer | float | Exception]) -> None:
        self._scripts = defaultdict(deque, {host: deque(script) for host, script in scripts.items()})
        self.sent: list[tuple[str, httpx2.Request]] = []
        self.answers: list[Answer] = []

    @property
    def hosts(self) -> list[str]:
        return [host for host, _ in self.sent]

    @property
    def all_closed(self) -> bool:
        return all(answer.closed for answer in self.answers)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append((request.url.host, request))
        while True:
            part = self._scripts[request.url.host].popleft()
            if isinstance(part, Exception):
                raise part
            if isinstance(part, Answer):
                self.answers.append(part)
                return httpx2.Response(part.status, headers={"content-type": part.kind}, stream=part)
            await asyncio.sleep(part)


class FakeBackend:
    """An OpenAI-style engine. Each scrape takes the next scripted result; the last result repeats for ever."""

    def __init__(
        self,
        name: str,
        *snapshots: Snapshot | Exception,
        kind: str = "openai",
        api_key: str | None = None,
        **spec: Any,
    ) -> None:
        self.spec = BackendSpec(name=name, kind=kind, url=f"http://{name}/", api_key=api_key, **spec)
        self.snapshots = deque(snapshots)
        self.scrapes = 0

    async def scrape(self) -> Snapshot:
        self.scrapes += 1
        result = self.snapshots.popleft() if len(self.snapshots) > 1 else self.snapshots[0]
        if isinstance(result, Exception):
            raise result
        return result

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        return status == 503 and "queue" in error.message

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        return is_out_of_memory(status, error)

    def has_failed(self, status: int, error: EngineError) -> bool:
        return status >= 500

    def translate(self, path: str, body: bytes) -> Translation | None:
        return None

    def read_error(self, status: int, body: bytes) -> EngineError:
        return read_error(status, body)


def pool_of(*backends: FakeBackend) -> BackendPool:
    """Return a pool of these backends that reports to no scheduler."""
    return BackendPool(
        backends,
        post=lambda _: None,
        monotonic=lambda: asyncio.get_running_loop().time(),
        interval_s=1.0,
        on_scrape_failure=lambda *_: None,
    )
