"""The parts of ASGI that the simulated APIs need."""

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
    """An error answer: its status and JSON body."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body


def post(path: str, handler: AsgiHandler) -> ASGIRouteHandler:
    """Route POST requests to `handler`. An `HttpError` that it raises becomes the response."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope.get("method") != "POST":
                raise HttpError(405, {"detail": "Method Not Allowed"})
            await handler(scope, receive, send)
        except HttpError as error:
            await send_json(send, error.status, error.body)

    return asgi(path, copy_scope=False)(app)


def header(scope: Scope, name: bytes) -> str | None:
    """Return a request header. `name` is in lower case."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def read_body(receive: Receive) -> bytes:
    """Return the whole request body, or b'' if the client disconnects while it sends."""
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)
    return b""


def decode(body: bytes, body_type: type[_Body], error_of: Callable[[str], HttpError]) -> _Body:
    """Decode the request body.

    Raises:
        HttpError: the body is not valid; `error_of` creates the error from the reason.
    """
    try:
        return msgspec.json.decode(body, type=body_type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise error_of(str(error)) from error


async def send_json(send: Send, status: int, body: object) -> None:
    """Send a whole JSON answer."""
    content = msgspec.json.encode(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": False})


async def start_events(send: Send) -> None:
    """Start a stream of server-sent events."""
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_events(send: Send, events: str, *, last: bool = False) -> None:
    """Send some events of the stream. `last` ends it."""
    await send({"type": "http.response.body", "body": events.encode(), "more_body": not last})


@asynccontextmanager
async def aborted_on_disconnect(loop: EngineLoop, generation: Generation, receive: Receive) -> AsyncIterator[None]:
    """Abort the generation when its client disconnects, and in any case at the end of the block."""

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
