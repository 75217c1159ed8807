"""A generation request from its first byte to its record: read, identified, predicted, relayed, remembered."""

import re
import uuid
from dataclasses import dataclass

from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api.asgi import WhileConnected, headers_of, read_body
from gateway.api.asking import ask_of
from gateway.api.auth import Door, application_of_system_prompt
from gateway.api.exchange import AsgiClient, Exchange
from gateway.api.jobs import Route, Terms
from gateway.api.outcomes import Outcomes
from gateway.clock import Clock
from gateway.dispatch.pool import Pool
from gateway.dispatch.relay import Relay
from gateway.dispatch.trip import Trip
from gateway.errors import BodyTooLarge, ClientGone, GatewayError, InvalidRequest, MethodNotAllowed
from gateway.prediction.forecaster import Forecaster

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of what one request may bring, and of its sender's silence."""

    max_body_bytes: int
    max_text_bytes: int
    body_timeout_s: float


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
    terms: Terms

    def answering(self, route: Route) -> ASGIApp:
        """Return the ASGI application of a route."""

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            headers = headers_of(scope)
            exchange = self._exchange(route.path, headers)
            client = AsgiClient(exchange, send)
            error: GatewayError | None = GatewayError("The gateway itself failed")  # until it is known better
            try:
                if scope.get("method") != "POST":
                    raise MethodNotAllowed(f"{route.path} takes POST only")
                await self._answer(exchange, headers, route, receive, client)
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
        route: Route,
        receive: Receive,
        client: AsgiClient,
    ) -> None:
        exchange.app = await self.door.application(headers)
        if headers.get("content-encoding", "identity") != "identity":
            raise InvalidRequest("Compressed bodies are not supported", param="content-encoding")
        limits = self.limits
        body = await read_body(receive, max_bytes=limits.max_body_bytes, silence_s=limits.body_timeout_s)
        asked = exchange.asked = route.read(body)
        if asked.text_bytes > limits.max_text_bytes:
            raise BodyTooLarge(f"The prompt's text is over {limits.max_text_bytes} bytes")
        exchange.app = exchange.app or application_of_system_prompt(asked.system)
        card = self.pool.require(asked.model)
        ask = ask_of(exchange.app, asked)
        exchange.forecast = await self.forecaster.forecast(ask, card.max_model_len)
        job = self.terms.job(exchange, exchange.forecast, route, body, headers)
        async with WhileConnected(receive):
            await self.relay.run(job, client, exchange.trip)
