"""A generation request from its first byte to its record: read, identified, predicted, relayed, remembered."""

from collections.abc import Callable
from dataclasses import dataclass

from litestar.types import ASGIApp

from gateway.api.asgi import WhileConnected
from gateway.api.asking import ask_of
from gateway.api.auth import Authenticator, application_of_system_prompt
from gateway.api.exchange import AsgiClient, Exchange
from gateway.api.frame import Arrival, Frame, Limits
from gateway.api.jobs import Route, Terms, bound_of
from gateway.api.outcomes import Outcomes
from gateway.clock import Clock
from gateway.dispatch.generation_proxy import GenerationProxy
from gateway.errors import BodyTooLarge
from gateway.fleet.pool import BackendPool
from gateway.prediction.forecaster import Forecaster
from gateway.protocol.model_rules import ModelRules

__all__ = ["Generations", "Limits"]


@dataclass(frozen=True, slots=True)
class Generations:
    """The generation routes' common part; `rules` gives those of the moment."""

    door: Authenticator
    pool: BackendPool
    forecaster: Forecaster
    relay: GenerationProxy
    outcomes: Outcomes
    clock: Clock
    limits: Limits
    terms: Terms
    rules: Callable[[], ModelRules] = ModelRules

    @property
    def frame(self) -> Frame:
        """What is around each request."""
        return Frame(self.outcomes, self.clock)

    def answering(self, route: Route) -> ASGIApp:
        """Return the ASGI application of a route."""

        async def answer(exchange: Exchange, arrival: Arrival, client: AsgiClient) -> None:
            await self._answer(exchange, route, arrival, client)

        return self.frame.around(route.path, route.api_format, answer)

    async def _answer(self, exchange: Exchange, route: Route, arrival: Arrival, client: AsgiClient) -> None:
        exchange.app = await self.door.application(arrival.headers)
        body = await arrival.body(self.limits)
        rules = self.rules()
        body, asked = rules.apply(body, route.read(body), route.length_field)
        exchange.asked = asked
        if asked.text_bytes > self.limits.max_text_bytes:
            raise BodyTooLarge(f"The prompt's text is over {self.limits.max_text_bytes} bytes")
        exchange.app = exchange.app or application_of_system_prompt(asked.system)
        card = self.pool.require(asked.model)
        ask = ask_of(exchange.app, asked)
        exchange.forecast = forecast = await self.forecaster.forecast(ask, card.max_model_len)
        level = rules.quantiles.get(asked.model) if asked.max_tokens is None else None
        if level is not None:
            exchange.bound_tokens = bound_of(forecast, level, card.max_model_len)
        job = self.terms.job(exchange, forecast, route, body, arrival.headers)
        async with WhileConnected(arrival.receive):
            await self.relay.run(job, client, exchange.trip)
