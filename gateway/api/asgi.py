"""ASGI for the routes that engines answer: request bodies with a limit, responses, and clients that disconnect."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar

from litestar.types import Message, Receive, Scope, Send

from gateway.api.body_budget import BodyAccount, BodyBudget
from gateway.dispatch.context import RequestContext
from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, GatewayError
from gateway.protocol.encodings import unpack
from gateway.protocol.sse import is_event_stream

T = TypeVar("T")

JSON = "application/json"
EVENT_STREAM = "text/event-stream; charset=utf-8"

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment of an event stream: clients ignore it."""

LARGE_BYTES = 256 * 1024
"""A larger body is decoded in a thread, so that other requests do not wait."""

DRAIN_FACTOR = 2
"""The gateway reads and discards a body that is too large, up to this multiple of the limit. Many clients read nothing
before they have sent the whole body; they would see a broken connection instead of the error."""

BODY_GRACE_S = 60.0
"""Longest time for a whole body, however small, besides the time that `MIN_BODY_RATE` allows for its size."""

MIN_BODY_RATE = 4096
"""Bytes per second that a client must send on average after `BODY_GRACE_S`."""

SMALL_BYTES = 16 * 1024
"""A compressed body up to this size is decompressed in the event loop, a larger one in a thread."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one request.

    Attributes:
        max_body_bytes: largest body, also after decompression.
        max_text_bytes: largest text of the prompt, in UTF-8.
        body_timeout_s: longest time without a byte of the body.
        keepalive_s: time between two comments in a stream whose answer has not begun; 0 means none.
        budget: limits the bytes of all bodies.
    """

    max_body_bytes: int
    max_text_bytes: int
    body_timeout_s: float
    keepalive_s: float = 0.0
    budget: BodyBudget = field(default_factory=BodyBudget)


async def off_loop(body: bytes, function: Callable[[bytes], T]) -> T:
    """Apply the function to the body, in a thread if the body is large."""
    return function(body) if len(body) <= LARGE_BYTES else await asyncio.to_thread(function, body)


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the request's headers, with names in lower case; the last one of several with the same name."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(
    receive: Receive, *, max_bytes: int, silence_s: float, encoding: str = "", account: BodyAccount | None = None
) -> bytes:
    """Read the request's body, and decompress it according to its `Content-Encoding`.

    Args:
        receive: returns the next ASGI message of the client.
        max_bytes: largest body, also after decompression.
        silence_s: longest time without a byte of the body.
        encoding: the value of `Content-Encoding`.
        account: counts the bytes of the body.

    Raises:
        UnsupportedEncoding: the gateway does not support the encoding.
        InvalidRequest: the body does not have that encoding.
        BodyTooLarge: larger than `max_bytes`, compressed or decompressed.
        BodyTimeout: the client sent nothing for `silence_s`, or sends more slowly than `MIN_BODY_RATE`.
        TooManyBodyBytes: the account does not allow the bytes.
        ClientGone: the client disconnected before the body was complete.
    """
    account = account or BodyBudget().account("")
    body = await _read_parts(receive, max_bytes, silence_s, account)
    if not encoding:
        return body
    if len(body) <= SMALL_BYTES:
        unpacked = unpack(body, encoding, max_bytes)
    else:
        async with account.budget.unpacking:
            unpacked = await asyncio.to_thread(unpack, body, encoding, max_bytes)
    account.add(len(unpacked))
    return unpacked


async def _read_parts(receive: Receive, max_bytes: int, silence_s: float, account: BodyAccount) -> bytes:
    parts: list[bytes] = []
    size, more = 0, True
    start_s = asyncio.get_running_loop().time()
    while more and size <= DRAIN_FACTOR * max_bytes:
        end_s = start_s + max(silence_s, BODY_GRACE_S) + size / MIN_BODY_RATE
        message = await _next_message(receive, silence_s, end_s)
        if message["type"] == "http.disconnect":
            raise ClientGone("The client disconnected before the body was complete")
        part = message.get("body", b"")
        size += len(part)
        if size <= max_bytes:
            account.add(len(part))
            parts.append(part)
        else:
            parts.clear()  # the rest is read only so that the client sees the answer
            account.release()
        more = message.get("more_body", False)
    if size > max_bytes:
        raise BodyTooLarge(f"The body is larger than {max_bytes} bytes")
    return b"".join(parts)


async def _next_message(receive: Receive, silence_s: float, end_s: float) -> Mapping[str, Any]:
    silence_end_s = asyncio.get_running_loop().time() + silence_s
    try:
        async with asyncio.timeout_at(min(silence_end_s, end_s)):
            return await receive()
    except TimeoutError as error:
        slow = f"sent nothing for {silence_s:g} s, or less than {MIN_BODY_RATE} bytes a second"
        raise BodyTimeout(f"The body is incomplete: the client {slow}") from error


async def respond(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a complete response."""
    length = {"content-length": str(len(body))}
    await start(send, status, {**headers, **length})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send a response's status and headers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


class SentWhole:
    """Collects a response and sends it at its end: an HTTP/1.0 client does not understand chunked encoding."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Add a message of the response."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = [pair for pair in message["headers"] if pair[0] != b"content-length"]
        elif message["type"] == "http.response.body":
            self._parts.append(message["body"])
            if not message["more_body"]:
                await self._send_all(b"".join(self._parts))

    async def _send_all(self, body: bytes) -> None:
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        await self._send({"type": "http.response.start", "status": self._status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


class AsgiClient:
    """The client of one request: reads its request, and sends it the response.

    Attributes:
        headers: the request's headers, with names in lower case.
        query: the query string.
        receive: returns the next ASGI message of the client.
        context: of the request; set before the response starts.
        started: whether a part of an answer has been sent; the headers and comments may have been sent before.
    """

    context: RequestContext

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = headers_of(scope)
        self.query: bytes = scope.get("query_string", b"")
        self.receive = receive
        self.started = False
        self._takes_parts = scope.get("http_version") != "1.0"
        self._send = send if self._takes_parts else SentWhole(send)
        self._body_read = False
        self._is_stream = False
        self._keeping: asyncio.Task[None] | None = None
        self._as_event = False
        self._address = (scope.get("client") or ("", 0))[0]
        self._account: BodyAccount | None = None

    async def body(self, limits: Limits, app: str | None = None) -> bytes:
        """Read the body, decompressed; raises as `read_body` does. It counts for `app`, or else for the address."""
        self._account = limits.budget.account(app or self._address)
        body = await read_body(
            self.receive,
            max_bytes=limits.max_body_bytes,
            silence_s=limits.body_timeout_s,
            encoding=self.headers.get("content-encoding", ""),
            account=self._account,
        )
        self._body_read = True
        return body

    def release(self) -> None:
        """Stop counting the body: the request has ended."""
        if self._account is not None:
            self._account.release()

    async def start(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the status and the headers, unless a comment was sent before; then the answer must be events."""
        self.started = True
        if self._keeping is not None:
            await asyncio.wait([self._keeping])
            self._as_event = not is_event_stream(content_type)
            return
        self._is_stream = is_event_stream(content_type)
        headers = {"content-type": content_type, **self.context.response_headers()}
        if length is None:
            headers["cache-control"] = "no-cache"
        else:
            headers["content-length"] = str(length)
        await start(self._send, status, headers)

    def keep_alive(self) -> None:
        """Send a comment in the background, after the headers of a stream if it is the first one."""
        if self._takes_parts and not self.started and (self._keeping is None or self._keeping.done()):
            self._keeping = asyncio.create_task(self._send_comment(is_first=self._keeping is None))

    async def _send_comment(self, *, is_first: bool) -> None:
        self._is_stream = True
        if is_first:
            headers = {"content-type": EVENT_STREAM, "cache-control": "no-cache", **self.context.response_headers()}
            await start(self._send, 200, headers)
        await self._send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body."""
        if self._as_event:  # the engine answered with JSON after the client had got the headers of a stream
            body = b"data: " + b"\ndata: ".join(body.splitlines()) + b"\n\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: GatewayError) -> None:
        """Report an error in the form that the client can still receive: a response, or a stream's last event.

        If another kind of response has started, nothing more is sent: its missing bytes show that it is incomplete.
        """
        api_format = self.context.api_format
        if self._keeping is not None:
            await asyncio.wait([self._keeping])
        if self.started or self._keeping is not None:
            if self._is_stream:
                await self.send(api_format.error_event(error), more=False)
            return
        headers = {"content-type": JSON, **self.context.response_headers(), **error.headers}
        if "expect" in self.headers and not self._body_read:
            # The client waits for "100 Continue" and may send the body or omit it, so the next bytes are ambiguous.
            headers["connection"] = "close"
        await respond(self._send, error.status, headers, api_format.error(error))


class WhileConnected:
    """Cancels the task in its context when the client disconnects, and raises `ClientGone`.

    Enter it after the body has been read: the next ASGI message is then the disconnect.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("WhileConnected needs a task to cancel")
        self._task = task
        self._watch = asyncio.create_task(self._wait_for_disconnect())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watch.cancel()
        if self._gone and self._task.uncancel() == 0 and isinstance(exc, asyncio.CancelledError):
            raise ClientGone("The client closed its connection") from exc

    async def _wait_for_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._gone = True
        self._task.cancel()


class KeepAlive:
    """Sends a comment every `interval_s` while the answer of a stream has not begun, so that balancers keep it open.

    The first comment comes after the first interval: an error before it still has an HTTP status of its own.
    """

    def __init__(self, client: AsgiClient, interval_s: float) -> None:
        self._client = client
        self._interval_s = interval_s
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._schedule()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _schedule(self) -> None:
        if self._interval_s > 0:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        if not self._client.started:
            self._client.keep_alive()
            self._schedule()
