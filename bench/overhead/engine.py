"""An engine that uses almost no CPU: canned answers over HTTP/1.1, and vLLM's pages for models and metrics.

Two ordinary request fields, which every proxy forwards, control the answer: `max_tokens` is the number of chunks of a
stream, and `seed` is the time between two chunks in milliseconds.

Run it as `python -m bench.overhead.engine`. It prints its URL, and ends when its standard input ends.
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
"""More memory than any run needs, so that no request waits."""

MEAN_TOKENS = 100
"""KV memory that one running request occupies, in tokens."""

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
    """Return the bytes that follow the last token of a stream."""
    usage = _USAGE.format(total=120 + chunks, tokens=chunks)
    last = _event(f'{{{_ID},"object":"chat.completion.chunk","choices":[],"usage":{usage}}}') if with_usage else b""
    return LAST_CHUNK + last + _event("[DONE]") + b"0\r\n\r\n"


def metrics_page(running: int) -> bytes:
    """Return vLLM's metrics page for this number of running requests."""
    usage = min(1.0, running * MEAN_TOKENS / (BLOCKS * BLOCK_TOKENS))
    return _page(
        "text/plain; version=0.0.4",
        f'vllm:cache_config_info{{engine="0",block_size="{BLOCK_TOKENS}",num_gpu_blocks="{BLOCKS}"}} 1.0\n'
        f'vllm:num_requests_running{{engine="0"}} {running}\n'
        'vllm:num_requests_waiting{engine="0"} 0\n'
        f'vllm:kv_cache_usage_perc{{engine="0"}} {usage}\n'
        'vllm:num_preemptions_total{engine="0"} 0\n',
    )


class CannedEngine:
    """State that all connections share: the number of running streams."""

    def __init__(self) -> None:
        self.running = 0


class Connection(asyncio.Protocol):
    """One connection. It answers one request after the other; the parser calls the `on_` methods."""

    def __init__(self, engine: CannedEngine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._stream: asyncio.TimerHandle | asyncio.Handle | None = None
        self._path = b""
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not derive from it

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the running stream."""
        self._end_stream()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; close the connection if they are not HTTP."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        """Start a request."""
        self._path, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        """Store a part of the body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Answer the request."""
        if self._path == b"/metrics":
            self._transport.write(metrics_page(self._engine.running))
        elif self._path == b"/v1/models":
            self._transport.write(MODELS)
        elif b'"stream":true' in self._body or b'"stream": true' in self._body:
            self._start_stream()
        else:
            self._transport.write(ANSWER)

    def _start_stream(self) -> None:
        chunks, pace = _CHUNKS.search(self._body), _PACE_MS.search(self._body)
        self._chunks = self._left = int(chunks[1]) if chunks else 1
        self._pace_s = int(pace[1]) / 1000 if pace else 0.0
        self._with_usage = b'"include_usage"' in self._body
        self._engine.running += 1
        self._transport.write(STREAM_HEAD)
        self._next_chunk()

    def _next_chunk(self) -> None:
        """Write the event of one token by itself, and schedule the next."""
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
    engine = CannedEngine()
    server = await loop.create_server(lambda: Connection(engine), sock=listener, backlog=4096)
    sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(_serve())
