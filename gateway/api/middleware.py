"""The middleware around every route that engines answer: it creates the request's context and records the outcome."""

import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from gateway.api.asgi import AsgiClient
from gateway.api.request_recorder import RequestRecorder
from gateway.api.running_requests import RunningRequests
from gateway.clock import Clock
from gateway.dispatch.context import RequestContext
from gateway.errors import ClientGone, GatewayError, MethodNotAllowed
from gateway.protocol.api_formats import ApiFormat

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
