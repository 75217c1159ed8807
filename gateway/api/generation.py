"""A generation request from its first byte to its record: read, identified, predicted, relayed, remembered."""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api.asgi import WhileConnected, headers_of, read_body
from gateway.api.asking import ask_of
from gateway.api.auth import Door, application_of_system_prompt
from gateway.api.exchange import JSON, AsgiClient, Exchange
from gateway.api.outcomes import Outcomes
from gateway.clock import Clock
from gateway.dispatch.pool import Pool
from gateway.dispatch.relay import Job, Relay
from gateway.dispatch.trip import Trip
from gateway.dispatch.upstream import Call
from gateway.errors import BodyTooLarge, ClientGone, GatewayError, InvalidRequest, MethodNotAllowed
from gateway.prediction.forecaster import Forecaster
from gateway.prediction.predictor import Forecast
from gateway.scheduling.messages import Request
from gateway.wire.fields import Generation, ask_for_usage

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_FORWARDED = ("accept", "content-type", "traceparent", "tracestate")
"""Request headers that an engine gets; the caller's key is not among them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what one request may bring and how long it may wait."""

    max_body_bytes: int
    max_text_bytes: int
    body_timeout_s: float
    queue_timeout_s: float


@dataclass(frozen=True, slots=True)
class Generations:
    """The generation routes' common part."""

    door: Door
    pool: Pool
    forecaster: Forecaster
    relay: Relay
    outcomes: Outcomes
    clock: Clock
    limits: Limits

    def route(self, path: str, read: Callable[[bytes], Generation]) -> ASGIApp:
        """Return the ASGI application of a route that engines serve under the same path.

        Args:
            path: the route.
            read: reads the fields that the gateway uses from the body.
        """

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = headers_of(scope)
            exchange = self._exchange(path, headers)
            client = AsgiClient(exchange, send)
            error: GatewayError | None = GatewayError("The gateway itself failed")  # until it is known better
            try:
                if scope.get("method") != "POST":
                    raise MethodNotAllowed(f"{path} takes POST only")
                await self._answer(exchange, headers, read, receive, client)
                error = None
            except ClientGone as gone:
                error = None if exchange.trip.complete else gone
            except GatewayError as failed:
                error = failed
                await client.fail(failed)
            finally:
                self.outcomes.note(exchange, error, self.clock.monotonic())

        return app

    def _exchange(self, path: str, headers: dict[str, str]) -> Exchange:
        unique = uuid.uuid4().hex
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else unique
        return Exchange(unique, request_id, path, self.clock.now(), Trip(self.clock.monotonic()))

    async def _answer(
        self,
        exchange: Exchange,
        headers: dict[str, str],
        read: Callable[[bytes], Generation],
        receive: Receive,
        client: AsgiClient,
    ) -> None:
        exchange.app = await self.door.application(headers)
        if headers.get("content-encoding", "identity") != "identity":
            raise InvalidRequest("Compressed bodies are not supported", param="content-encoding")
        limits = self.limits
        body = await read_body(receive, max_bytes=limits.max_body_bytes, silence_s=limits.body_timeout_s)
        asked = exchange.asked = read(body)
        if asked.text_bytes > limits.max_text_bytes:
            raise BodyTooLarge(f"The prompt's text is over {limits.max_text_bytes} bytes")
        exchange.app = exchange.app or application_of_system_prompt(asked.system)
        card = self.pool.require(asked.model)
        ask = ask_of(exchange.app, asked)
        exchange.forecast = await self.forecaster.forecast(ask, card.max_model_len)
        job = self._job(exchange, asked, exchange.forecast, body, headers)
        async with WhileConnected(receive):
            await self.relay.run(job, client, exchange.trip)

    def _job(
        self, exchange: Exchange, asked: Generation, forecast: Forecast, body: bytes, headers: dict[str, str]
    ) -> Job:
        arrival_s = exchange.trip.arrival_s
        request = Request(
            id=exchange.id,
            model=asked.model,
            prompt_tokens=forecast.prompt_tokens,
            length=forecast.length,
            arrival_s=arrival_s,
            deadline_s=arrival_s + self.limits.queue_timeout_s,
            sequences=asked.sequences,
        )
        hide_usage = asked.stream and not asked.includes_usage
        upstream_headers = {name: headers[name] for name in _FORWARDED if name in headers}
        upstream_headers |= {"content-type": JSON, "x-request-id": exchange.request_id}
        call = Call(exchange.route, upstream_headers, ask_for_usage(body) if hide_usage else body)
        return Job(request, call, hide_usage)
