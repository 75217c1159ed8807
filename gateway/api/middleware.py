"""What is around every request, from the outside in: `Edge`, `RunningRequests`, `Middleware`.

`Edge` answers HEAD and OPTIONS and adds the headers of CORS for all routes, also for errors and raw ASGI routes.
`RunningRequests` lets a stop wait for the requests and end the rest. `Middleware` is around every route that engines
answer: it creates the request's context and records the outcome.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

from litestar import Litestar, asgi
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Message, Receive, Scope, Send
from litestar.utils import normalize_path

from gateway.api.asgi import AsgiClient, headers_of, respond, start
from gateway.api.request_recorder import RequestRecorder
from gateway.clock import Clock
from gateway.dispatch.context import RequestContext
from gateway.errors import ClientGone, GatewayError, MethodNotAllowed, RouteNotFound, ShuttingDown
from gateway.protocol.api_formats import ApiFormat
from gateway.protocol.error_bodies import openai_error


class RunningRequests:
    """The tasks of all requests, waiting and running.

    Attributes:
        stopping: whether the gateway got a stop signal; it still answers requests, but is not ready any more.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = False

    def __len__(self) -> int:
        return len(self._tasks)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count the current task as a request.

        Raises:
            ShuttingDown: `end` was called before the request had its answer.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ended:
                raise
            task.uncancel()
            raise ShuttingDown("The gateway is stopping") from None
        finally:
            self._tasks.discard(task)

    async def finished(self, timeout_s: float) -> None:
        """Wait until the requests of this moment have their answers, at most `timeout_s`."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=max(0.0, timeout_s))

    def end(self) -> None:
        """End all requests with `ShuttingDown`."""
        self._ended = True
        for task in list(self._tasks):
            task.cancel()


METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

_NOT_FOR_BROWSERS = "/admin"
"""Web pages of other origins never get an answer of these routes, whatever the settings say."""


@dataclass(frozen=True, slots=True)
class Cors:
    """Which web pages may read answers. `"*"` in a list stands for everything.

    Attributes:
        allow_origins: origins of pages; none turns CORS off.
        allow_headers: request headers that a page may send.
        allow_methods: methods that a page may use.
        max_age_s: how long a browser may remember the answer to a preflight request.
    """

    allow_origins: Sequence[str]
    allow_headers: Sequence[str]
    allow_methods: Sequence[str]
    max_age_s: int


def allowed_methods(app: Litestar, path: str) -> tuple[str, ...]:
    """Return the methods that the path accepts; none if there is no such route."""
    methods = [method for method in METHODS if _accepts(app, path, method)]
    if not methods:
        return ()
    return (*methods, *(["HEAD"] if "GET" in methods else []), "OPTIONS")


def _accepts(app: Litestar, path: str, method: str) -> bool:
    try:
        _, handler, *_ = app.asgi_router.handle_routing(path=normalize_path(path), method=method)
    except HTTPException:
        return False
    # Litestar passes every method to an ASGI route. Ours accept POST only.
    return method == "POST" or not isinstance(handler, ASGIRouteHandler)


class Edge:
    """Answers HEAD as GET, OPTIONS with the allowed methods, and adds the headers of CORS.

    OPTIONS is answered with 204 and `Allow`, with or without CORS: it is what a client that sends OPTIONS asks for.

    Args:
        app: the routes.
        cors: which web pages may read answers; off without `allow_origins`.
    """

    def __init__(self, app: Litestar, cors: Cors) -> None:
        self._app = app
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope.get("method", "")
        if not method or not (self._cors.allow_origins or method in ("HEAD", "OPTIONS")):
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        allowing = self._allowing(scope["path"], headers.get("origin", ""))
        if method == "OPTIONS":
            await self._answer_options(scope["path"], headers, allowing, send)
            return
        if method == "HEAD":
            scope = cast("Scope", {**scope, "method": "GET"})  # the HTTP layer leaves out the body
        await self._app(scope, receive, _adding(send, allowing) if allowing else send)

    def _allowing(self, path: str, origin: str) -> dict[str, str]:
        """Return the headers that let a web page of this origin read the answer; none if it may not."""
        origins = self._cors.allow_origins
        if not origins or path == _NOT_FOR_BROWSERS or path.startswith(f"{_NOT_FOR_BROWSERS}/"):
            return {}
        if "*" in origins:
            return {"access-control-allow-origin": "*", "access-control-expose-headers": "*"}
        if origin not in origins:
            return {"vary": "origin"}
        return {"access-control-allow-origin": origin, "access-control-expose-headers": "*", "vary": "origin"}

    async def _answer_options(self, path: str, headers: dict[str, str], allowing: dict[str, str], send: Send) -> None:
        methods = allowed_methods(self._app, path)
        if not methods:
            error = RouteNotFound(f"The route {path[:200]} does not exist")
            await respond(send, error.status, {"content-type": "application/json", **allowing}, openai_error(error))
            return
        answer = {"allow": ", ".join(methods), **allowing}
        if "access-control-allow-origin" in allowing and "access-control-request-method" in headers:
            answer |= self._preflight(methods, headers.get("access-control-request-headers", ""))
        await start(send, 204, answer)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _preflight(self, methods: Sequence[str], requested_headers: str) -> dict[str, str]:
        allowed = self._cors.allow_methods
        names = ", ".join(method for method in methods if method in allowed or "*" in allowed)
        # A literal "*" would not cover `Authorization`, so the requested names are repeated.
        any_header = "*" in self._cors.allow_headers
        return {
            "access-control-allow-methods": names,
            "access-control-allow-headers": requested_headers if any_header else ", ".join(self._cors.allow_headers),
            "access-control-max-age": str(self._cors.max_age_s),
        }


def _adding(send: Send, headers: dict[str, str]) -> Send:
    added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *added]
        await send(message)

    return send_with_headers


_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")

Handler = Callable[[RequestContext, AsgiClient], Awaitable[None]]
"""Answers one request, or raises a `GatewayError`."""


@dataclass(frozen=True, slots=True)
class Middleware:
    """Turns handlers into routes. Every request gets an id, an answer in its API's format, and one record."""

    recorder: RequestRecorder
    clock: Clock
    running: RunningRequests = field(default_factory=RunningRequests)

    def route(self, path: str, api_format: ApiFormat, handler: Handler) -> ASGIRouteHandler:
        """Return a route that accepts POST."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            client = AsgiClient(scope, receive, send)
            context = self._context(path, api_format, client.headers)
            client.context = context
            error: GatewayError | None = None
            try:
                if scope.get("method") != "POST":
                    raise MethodNotAllowed(f"{path} accepts POST only", allowed=("POST", "OPTIONS"))
                with self.running.one():
                    await handler(context, client)
            except ClientGone as gone:
                error = None if context.complete else gone
            except GatewayError as failure:
                error = failure
                await client.fail(failure)
            except BaseException:
                error = GatewayError("The gateway itself failed")
                raise
            finally:
                client.release()
                self.recorder.finish(context, error, self.clock.monotonic())

        return asgi(path, copy_scope=False)(answer)

    def _context(self, path: str, api_format: ApiFormat, headers: Mapping[str, str]) -> RequestContext:
        unique = os.urandom(16).hex()
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else unique
        return RequestContext(unique, request_id, api_format, path, self.clock.now(), self.clock.monotonic())
