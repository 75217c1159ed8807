"""One request at the edge, what is known of it so far, and the client who waits for its answer."""

from dataclasses import dataclass, field
from datetime import datetime

from litestar.types import Send

from gateway.api.asgi import respond, start
from gateway.dispatch.trip import Trip
from gateway.errors import GatewayError
from gateway.prediction.predictor import Forecast
from gateway.protocol.api_formats import COMPLETIONS, ApiFormat
from gateway.protocol.fields import Generation

JSON = "application/json"


@dataclass(slots=True)
class Exchange:
    """One request and what is known of it so far; `api_format` is that of the API that it came by.

    `bound_tokens` is the longest answer that the gateway asks for by itself, from the forecast.
    """

    id: str
    request_id: str
    route: str
    arrived_at: datetime
    trip: Trip
    app: str | None = None
    asked: Generation | None = None
    forecast: Forecast | None = None
    bound_tokens: int | None = None
    api_format: ApiFormat = COMPLETIONS

    def headers(self) -> dict[str, str]:
        """The response headers that tell how the request fared, as far as it came."""
        headers = {"x-request-id": self.request_id}
        if self.forecast:
            headers["x-magnus-predicted-tokens"] = str(self.forecast.p50_tokens)
        if self.trip.dispatched_s is not None:
            headers["x-magnus-queue-ms"] = f"{1000 * (self.trip.dispatched_s - self.trip.arrival_s):.1f}"
        if self.trip.backend is not None:
            headers["x-magnus-backend"] = self.trip.backend
        return headers


@dataclass(slots=True)
class AsgiClient:
    """The relay's client, over ASGI."""

    exchange: Exchange
    _send: Send
    started: bool = field(default=False)
    _events: bool = field(default=False)

    async def start(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the status and the headers."""
        self.started = True
        self._events = content_type.startswith("text/event-stream")
        headers = {"content-type": content_type, **self.exchange.headers()}
        if length is None:
            headers["cache-control"] = "no-cache"
        else:
            headers["content-length"] = str(length)
        await start(self._send, status, headers)

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body."""
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def fail(self, error: GatewayError, *, close: bool = False) -> None:
        """Tell the client of an error in the shape that it can still get: a response, or a stream's last event.

        Of anything else that has begun nothing more is sent: its length shows that it is cut off. With `close` the
        connection serves no other request.
        """
        api_format = self.exchange.api_format
        if self.started:
            if self._events:
                await self.send(api_format.error_event(error), more=False)
            return
        headers = {"content-type": JSON, **self.exchange.headers(), **error.headers}
        if close:
            headers["connection"] = "close"
        await respond(self._send, error.status, headers, api_format.error(error))
