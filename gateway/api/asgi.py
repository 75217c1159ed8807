"""The little of ASGI that the data path needs, in one place: headers, a bounded body, a reply, a client that leaves."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from litestar.types import Message, Receive, Scope, Send

from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone
from gateway.protocol.encodings import unpack

DRAIN_FACTOR = 2
"""A body over the limit is read on and thrown away up to so many times the limit, so that its sender, who reads nothing
before it has sent all, gets the error instead of a broken pipe."""

SMALL_BYTES = 16 * 1024
"""A compressed body of no more is unpacked at once, a larger one in a thread."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Return the request's headers, names in lower case; of several of one name the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


async def read_body(receive: Receive, *, max_bytes: int, silence_s: float, encoding: str = "") -> bytes:
    """Read the request's body, and unpack it if its `Content-Encoding` says that it is packed.

    Raises:
        UnsupportedEncoding: packed in a way that is not known here.
        InvalidRequest: not packed as its encoding says.
        BodyTooLarge: over `max_bytes`, as it came or unpacked.
        BodyTimeout: the client sent nothing for `silence_s`.
        ClientGone: it left before the body was whole.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more and size <= DRAIN_FACTOR * max_bytes:
        message = await _next_message(receive, silence_s)
        if message["type"] == "http.disconnect":
            raise ClientGone("The client left before its request was whole")
        part = message.get("body", b"")
        size += len(part)
        if size <= max_bytes:
            parts.append(part)
        more = message.get("more_body", False)
    if size > max_bytes:
        raise BodyTooLarge(f"The body is over {max_bytes} bytes")
    body = b"".join(parts)
    if not encoding:
        return body
    if size <= SMALL_BYTES:
        return unpack(body, encoding, max_bytes)
    return await asyncio.to_thread(unpack, body, encoding, max_bytes)


async def _next_message(receive: Receive, silence_s: float) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(silence_s):
            return await receive()
    except TimeoutError as error:
        raise BodyTimeout(f"The body stopped half-way: nothing came for {silence_s:g} s") from error


async def respond(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    """Send a whole response."""
    length = {"content-length": str(len(body))}
    await start(send, status, {**headers, **length})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def start(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send a response's status and headers."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


class SentWhole:
    """Sends a response when all of it is there: HTTP/1.0 knows no chunks, so its client would read our framing."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        """Take a message of the response."""
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


class WhileConnected:
    """Cancels what runs in its context when the client leaves, and turns that into `ClientGone`.

    To be entered when the request's body has been read: the next message is then the client's leaving.
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
