"""An engine that costs next to nothing: canned answers over HTTP/1.1, with vLLM's pages for who asks how it is.

How an answer comes is told by two ordinary fields of the request, which every proxy passes on: `max_tokens` is the
number of a stream's chunks, and `seed` the milliseconds between them.

Run as `python -m bench.overhead.engine`; it prints its URL, and ends when its stdin does.
"""

import asyncio
import re
import socket
import sys
from typing import cast

import httptools
import uvloop

MODEL = "canned"
BLOCKS, BLOCK_TOKENS = 1_000_000, 16
"""More memory than any run needs: nothing is to wait."""

MEAN_TOKENS = 100
"""What one running request counts for in the memory in use."""

_CHUNKS = re.compile(rb'"max_tokens": ?(\d+)')
_PACE_MS = re.compile(rb'"seed": ?(\d+)')
_ID = '"id":"chatcmpl-5f2b6f0c1d4e4e1b9a7c3d2e1f0a9b8c","created":1767225600,"model":"canned"'
_USAGE = '{{"prompt_tokens":120,"total_tokens":{total},"completion_tokens":{tokens}}}'


def _headers(content_type: str, rest: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: {content_type}\r\n{rest}\r\n\r\n".encode()


def _page(content_type: str, text: str) -> bytes:
    return _headers(content_type, f"content-length: {len(text.encode())}") + text.encode()


def _event(payload: str) -> bytes:
    data = f"data: {payload}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def _chunk_event(delta: str, reason: str) -> bytes:
    choice = f'{{"index":0,"delta":{{{delta}}},"logprobs":null,"finish_reason":{reason}}}'
    return _event(f'{{{_ID},"object":"chat.completion.chunk","choices":[{choice}]}}')


ANSWER = _page(
    "application/json",
    f'{{{_ID},"object":"chat.completion","choices":[{{"index":0,"message":{{"role":"assistant","content":"Good day."}},'
    f'"logprobs":null,"finish_reason":"stop"}}],"usage":{_USAGE.format(total=123, tokens=3)}}}',
)
MODELS = _page(
    "application/json",
    f'{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":1767225600,"max_model_len":32768}}]}}',
)
STREAM_HEAD = _headers("text/event-stream; charset=utf-8", "transfer-encoding: chunked")
CHUNK = _chunk_event('"content":" word"', "null")
LAST_CHUNK = _chunk_event('"content":""', '"stop"')


def stream_end(chunks: int, *, with_usage: bool) -> bytes:
    """Return all that follows a stream's last token."""
    usage = _USAGE.format(total=120 + chunks, tokens=chunks)
    told = _event(f'{{{_ID},"object":"chat.completion.chunk","choices":[],"usage":{usage}}}') if with_usage else b""
    return LAST_CHUNK + told + _event("[DONE]") + b"0\r\n\r\n"


def metrics_page(running: int) -> bytes:
    """Return vLLM's metrics of an engine with so many requests."""
    usage = min(1.0, running * MEAN_TOKENS / (BLOCKS * BLOCK_TOKENS))
    return _page(
        "text/plain; version=0.0.4",
        f'vllm:cache_config_info{{engine="0",block_size="{BLOCK_TOKENS}",num_gpu_blocks="{BLOCKS}"}} 1.0\n'
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        'vllm:num_requests_waiting{engine="0"} 0\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {usage}\n'
        'vllm:num_preemptions_total{engine="0"} 0\n',
    )


class Engine:
    """What all connections share: how many answers are under way."""

    def __init__(self) -> None:
        self.running = 0


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._stream: asyncio.TimerHandle | asyncio.Handle | None = None
        self._path = b""
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop what is under way."""
        self._end_stream()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Begin a request."""
        self._path, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        """Take a part of its body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer it."""
        if self._path == b"/metrics":
            self._transport.write(metrics_page(self._engine.running))
        elif self._path == b"/v1/models":
            self._transport.write(MODELS)
        elif b'"stream":true' in self._body or b'"stream": true' in self._body:
            self._begin_stream()
        else:
            self._transport.write(ANSWER)

    def _begin_stream(self) -> None:
        chunks, pace = _CHUNKS.search(self._body), _PACE_MS.search(self._body)
        self._chunks = self._left = int(chunks[1]) if chunks else 1
        self._pace_s = int(pace[1]) / 1000 if pace else 0.0
        self._with_usage = b'"include_usage"' in self._body
        self._engine.running += 1
        self._transport.write(STREAM_HEAD)
        self._next_chunk()

    def _next_chunk(self) -> None:
        """Write one token's event, a write of its own, and come back for the next."""
        if not self._left:
            self._transport.write(stream_end(self._chunks, with_usage=self._with_usage))
            self._end_stream()
            return
        self._left -= 1
        self._transport.write(CHUNK)
        loop = asyncio.get_running_loop()
        wait_s = self._pace_s if self._left else 0.0
        self._stream = loop.call_later(wait_s, self._next_chunk) if wait_s else loop.call_soon(self._next_chunk)

    def _end_stream(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None
            self._engine.running -= 1


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    engine = Engine()
    server = await loop.create_server(lambda: Connection(engine), sock=listener, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())
