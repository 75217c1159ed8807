"""The two values that the API layer hands to the proxies: the context of a request and the connection to its client."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from gateway.fleet.breaker import Fingerprint
from gateway.prediction.predictor import Forecast
from gateway.protocol.answers import Usage
from gateway.protocol.api_formats import ApiFormat
from gateway.protocol.generation_request import GenerationRequest


@dataclass(slots=True)
class RequestContext:
    """What the gateway knows of one request, from its arrival to its history record.

    The API layer creates the context, fills in the first part and reads all of it when the request is over. The proxies
    fill in the second part, which is why the type lives here: this package must not import the API layer.

    Attributes:
        id: 128 random bits in hex.
        request_id: the client sees it as `x-request-id`.
        api_format: of the API that the client called.
        route: path of the route.
        arrived_at: wall-clock time of the arrival.
        arrival_s: time of the arrival, in monotonic seconds.
        app: application.
        generation: the decoded body; None before it is read, and for requests that are not generations.
        forecast: predicted length of the answer.
        fingerprint: of the application and the prompt; None if nothing is known of them.
        backend: the backend of the latest attempt.
        dispatched_s: when the latest attempt was sent, in monotonic seconds.
        first_byte_s: when the first byte of the answer arrived, in monotonic seconds.
        attempts: attempts that failed.
        passed_headers: headers of the engine's answer that the client gets.
        events: events of the stream that carry a token.
        usage: the engine's own token counts.
        finish_reason: why the answer ended.
        complete: the gateway has handed the whole answer to the client's connection.
    """

    id: str
    request_id: str
    api_format: ApiFormat
    route: str
    arrived_at: datetime
    arrival_s: float
    app: str | None = None
    generation: GenerationRequest | None = None
    forecast: Forecast | None = None
    fingerprint: Fingerprint | None = None

    backend: str | None = None
    dispatched_s: float | None = None
    first_byte_s: float | None = None
    attempts: int = 0
    passed_headers: dict[str, str] = field(default_factory=dict)
    events: int = 0
    usage: Usage | None = None
    finish_reason: str | None = None
    complete: bool = False

    @property
    def input_tokens(self) -> int | None:
        """Prompt tokens; None if the engine did not report them."""
        return self.usage.prompt_tokens if self.usage else None

    @property
    def output_tokens(self) -> int:
        """Generated tokens, over all sequences; the number of events if the engine did not report them."""
        reported = self.usage.completion_tokens if self.usage else None
        return self.events if reported is None else reported

    def response_headers(self) -> dict[str, str]:
        """Return the response headers that describe the request, as far as it got."""
        headers = {**self.passed_headers, "x-request-id": self.request_id}
        if self.forecast:
            headers["x-magnus-predicted-tokens"] = str(self.forecast.p50_tokens)
        if self.dispatched_s is not None:
            headers["x-magnus-queue-ms"] = f"{1000 * (self.dispatched_s - self.arrival_s):.1f}"
        if self.backend is not None:
            headers["x-magnus-backend"] = self.backend
        return headers


class Client(Protocol):
    """The client of one request, as the proxies need it."""

    @property
    def started(self) -> bool:
        """Whether the response has started."""
        ...

    async def start(self, status: int, content_type: str, *, length: int | None) -> None:
        """Send the status and the headers."""
        ...

    async def send(self, body: bytes, *, more: bool) -> None:
        """Send a part of the body; waits while the client reads slowly."""
        ...
