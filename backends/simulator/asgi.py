"""The little of ASGI that both faces need."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from backends.simulator.loop import EngineLoop, Generation

AsgiHandler = Callable[[Scope, Receive, Send], Awaitable[None]]

_Body = TypeVar("_Body", bound=msgspec.Struct)


class HttpError(Exception):
    """An answer with an error status, in the shape of the face that raises it."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def post(path: str, handler: AsgiHandler) -> ASGIRouteHandler:
    """Route POST requests to `handler`; the refusal that it raises, if any, is what the client gets."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope.get("method") != "POST":
                raise HttpError(405, {"detail": "Method Not Allowed"})
            await handler(scope, receive, send)
        except HttpError as error:
            await send_json(send, error.status, error.body)

    return asgi(path, copy_scope=False)(app)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header by its lower-case name."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body, or b'' if the client goes while it sends."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)
    return b""


def decode(body: bytes, body_type: type[_Body], error_of: Callable[[str], HttpError]) -> _Body:
    """Return the request that the body is.

    Raises:
        HttpError: what `error_of` makes of the reason why it is none.
    """
    try:
        return msgspec.json.decode(body, type=body_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise error_of(str(error)) from error


async def send_json(send: Send, status: int, body: object) -> None:
    """Send a whole answer."""
    content = msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def start_events(send: Send) -> None:
    """Begin a stream of server-sent events."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_events(send: Send, events: str, *, last: bool = False) -> None:
    """Send some of the stream, or the last of it."""
    await send({"type": "http.response.body", "body": events.encode(), "more_body": not last})


@asynccontextmanager
async def aborted_on_disconnect(loop: EngineLoop, generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Drop the generation as soon as its client goes, and in any case on the way out."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        loop.abort(generation)

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        loop.abort(generation)
