"""The outermost ASGI application: HEAD, OPTIONS and CORS for all routes, also for errors and raw ASGI routes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from litestar import Litestar
from litestar.exceptions import HTTPException
from litestar.handlers import ASGIRouteHandler
from litestar.types import Message, Receive, Scope, Send
from litestar.utils import normalize_path

from gateway.api.asgi import headers_of, respond, start
from gateway.errors import RouteNotFound
from gateway.protocol.error_bodies import openai_error

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
