"""Engines for the gateway: real ones, simulated ones, and small fake ones with programmable faults."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec

from tests.e2e.gateway import DEADLINE_S, Condition, sum_of_samples, until

MODEL = "tiny"
CONTEXT_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine with vLLM's API and a model of `CONTEXT_TOKENS`, observed through its metrics."""

    url: str

    def backend(self, name: str = "gpu-0", **fields: Any) -> dict[str, Any]:
        """Return its entry in a gateway's settings."""
        return {"name": name, "kind": "vllm", "url": self.url, **fields}

    async def sample(self, name: str, *labels: str) -> float:
        """Read a sample, or the sum of several samples, from its metrics page."""
        async with httpx2.AsyncClient(timeout=DEADLINE_S, trust_env=False) as client:
            return sum_of_samples((await client.get(f"{self.url}/metrics")).text, name, *labels)

    async def works(self) -> bool:
        """Return whether a request of any client holds memory in it."""
        return await self.sample("vllm:kv_cache_usage_perc") > 0

    async def is_empty(self) -> bool:
        """Return whether nothing runs, nothing waits and no memory is held."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        return not any([await self.sample(name) for name in names])

    async def disconnect_while_it_works(self, request: Coroutine[Any, Any, None]) -> None:
        """Send a request, cancel it while it holds memory in the engine, and wait until the engine is empty."""
        pending = asyncio.create_task(request)
        await until(self.works, "the engine works")
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)
        await until(self.is_empty, "the engine has dropped the request")

    async def answers_finished(self) -> float:
        """Return the number of sequences that finished since the start, without aborted ones."""
        ends = [
            await self.sample("vllm:request_success_total", f'finished_reason="{why}"') for why in ("stop", "length")
        ]
        return sum(ends)


@dataclass(frozen=True, slots=True)
class Received:
    """One request as a fake engine received it, byte for byte."""

    path: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class FakeEngine:
    """Lists one model, and answers every generation request with `respond`, which may write any bytes to the socket.

    The connection is closed after each answer. `received` has every posted request. `left_s` has the loop's seconds at
    which a client closed its connection before its answer ended.
    """

    respond: Respond
    received: list[Received] = field(default_factory=list)
    left_s: list[float] = field(default_factory=list)
    _port: int = 0
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections, and break those that are open."""
        if self._server is not None:
            self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def backend(self, name: str, **fields: Any) -> dict[str, Any]:
        """Return its entry in a gateway's settings. Of two equally good backends the first by name is chosen."""
        return {"name": name, "kind": "vllm", "url": self.url, **fields}

    def has_received(self, count: int) -> Condition:
        """Return the condition that this many generation requests arrived."""

        async def condition() -> bool:
            return len(self.received) == count

        return condition

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await _read_request(reader)
                watch = asyncio.create_task(self._watch(reader))
                try:
                    await self._answer(request, writer)
                finally:
                    watch.cancel()
        except asyncio.CancelledError:
            return  # the engine was stopped
        finally:
            self._connections.discard(task)
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Record when the client disconnects. It sends nothing more, so a read returns only at the end."""
        with suppress(ConnectionError):
            await reader.read()
        self.left_s.append(asyncio.get_running_loop().time())

    async def _answer(self, request: Received, writer: asyncio.StreamWriter) -> None:
        if request.path == "/v1/models":
            card = {"id": MODEL, "object": "model", "max_model_len": CONTEXT_TOKENS}
            writer.write(whole(msgspec.json.encode({"object": "list", "data": [card]})))
        elif request.path == "/metrics":
            writer.write(whole(b"", status="404 Not Found"))
        else:
            self.received.append(request)
            await self.respond(request, writer)
        await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Received:
    line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields if field)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(line.split(" ")[1], headers, body)


@asynccontextmanager
async def fake_engine(respond: Respond) -> AsyncIterator[FakeEngine]:
    """Run a fake engine until the block ends."""
    engine = FakeEngine(respond)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def whole(body: bytes, *, status: str = "200 OK") -> bytes:
    """Write a JSON response in one piece."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close"
    return head.encode() + b"\r\n\r\n" + body


def answer(text: str = "hello", *, tokens: int = 1) -> bytes:
    """Write a completion in one piece, with its usage."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "text": text, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens}
    return whole(msgspec.json.encode({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}))


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


class HeldBack:
    """A fake engine's answers that wait until the test releases them."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, _: Received, writer: asyncio.StreamWriter) -> None:
        await self.go.wait()
        writer.write(answer())


def chunk(data: bytes) -> bytes:
    """Write one chunk of a chunked response."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(payload: object) -> bytes:
    """Write one server-sent event as a chunk."""
    return chunk(b"data: " + msgspec.json.encode(payload) + b"\n\n")


def token(text: str, *, finish_reason: str | None = None) -> bytes:
    """Write the event of one token of a chat."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"id": "x", "object": "chat.completion.chunk", "choices": [choice]})


DONE = chunk(b"data: [DONE]\n\n")
