"""What every request at the edge has around it: an id, a client, and an end that is noted however it comes."""

import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api.asgi import SentWhole, headers_of, read_body
from gateway.api.exchange import AsgiClient, Exchange
from gateway.api.outcomes import Outcomes
from gateway.clock import Clock
from gateway.dispatch.trip import Trip
from gateway.errors import ClientGone, GatewayError, MethodNotAllowed
from gateway.protocol.api_formats import ApiFormat

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what one request may bring, and of its sender's silence."""

    max_body_bytes: int
    max_text_bytes: int
    body_timeout_s: float


@dataclass(slots=True)
class Arrival:
    """A request as it comes in."""

    headers: dict[str, str]
    query: bytes
    receive: Receive
    body_read: bool = False

    async def body(self, limits: Limits) -> bytes:
        """Read the body, unpacked."""
        encoding = self.headers.get("content-encoding", "")
        body = await read_body(
            self.receive, max_bytes=limits.max_body_bytes, silence_s=limits.body_timeout_s, encoding=encoding
        )
        self.body_read = True
        return body


Work = Callable[[Exchange, Arrival, AsgiClient], Awaitable[None]]
"""Answers one request, or raises a `GatewayError`."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Turns work into an ASGI application."""

    outcomes: Outcomes
    clock: Clock

    def around(self, path: str, api_format: ApiFormat, work: Work) -> ASGIApp:
        """Return the ASGI application of a route that takes POST."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            arrival = Arrival(headers_of(scope), scope.get("query_string", b""), receive)
            exchange = self._exchange(path, api_format, arrival.headers)
            client = AsgiClient(exchange, SentWhole(send) if scope.get("http_version") == "1.0" else send)
            error: GatewayError | None = GatewayError("The gateway itself failed")  # until it is known better
            try:
                if scope.get("method") != "POST":
                    raise MethodNotAllowed(f"{path} takes POST only")
                await work(exchange, arrival, client)
                error = None
            except ClientGone as gone:
                error = None if exchange.trip.complete else gone
            except GatewayError as failed:
                error = failed
                # Who waits for our "100 Continue" may send the body or leave it: the next bytes may be either.
                await client.fail(failed, close="expect" in arrival.headers and not arrival.body_read)
            finally:
                self.outcomes.note(exchange, error, self.clock.monotonic())

        return app

    def _exchange(self, path: str, api_format: ApiFormat, headers: dict[str, str]) -> Exchange:
        unique = os.urandom(16).hex()
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else unique
        return Exchange(unique, request_id, path, self.clock.now(), Trip(self.clock.monotonic()), api_format=api_format)
