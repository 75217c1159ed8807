"""What is not a generation, and so not scheduled: it passes through to the least loaded backend of its model.

A caller is let in as anywhere, the request is counted in the metrics, and it leaves no record in history.
"""

from collections.abc import Callable
from dataclasses import dataclass

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api.asgi import WhileConnected
from gateway.api.auth import Authenticator
from gateway.api.exchange import JSON, AsgiClient, Exchange
from gateway.api.frame import Arrival, Frame, Limits
from gateway.api.jobs import forwarded
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.protocol.api_formats import ANTHROPIC, COMPLETIONS, ApiFormat
from gateway.protocol.forms import read_model, with_model
from gateway.protocol.model_rules import ModelRules
from gateway.upstream.client import Call

PATHS: dict[str, ApiFormat] = {
    "/v1/embeddings": COMPLETIONS,
    "/v1/rerank": COMPLETIONS,
    "/v2/rerank": COMPLETIONS,
    "/rerank": COMPLETIONS,
    "/v1/score": COMPLETIONS,
    "/score": COMPLETIONS,
    "/pooling": COMPLETIONS,
    "/classify": COMPLETIONS,
    "/v1/audio/transcriptions": COMPLETIONS,
    "/v1/audio/translations": COMPLETIONS,
    "/v1/audio/speech": COMPLETIONS,
    "/tokenize": COMPLETIONS,
    "/detokenize": COMPLETIONS,
    "/v1/messages/count_tokens": ANTHROPIC,
}


@dataclass(frozen=True, slots=True)
class Passthrough:
    """The common part of these routes; `rules` gives those of the moment."""

    door: Authenticator
    direct: PassthroughProxy
    frame: Frame
    limits: Limits
    rules: Callable[[], ModelRules]

    def routes(self) -> list[ASGIRouteHandler]:
        """Return a route for each path."""
        return [_route(path, self._answering(path, api_format)) for path, api_format in PATHS.items()]

    def _answering(self, path: str, api_format: ApiFormat) -> ASGIApp:
        async def pass_on(exchange: Exchange, arrival: Arrival, client: AsgiClient) -> None:
            await self._pass_on(path, exchange, arrival, client)

        return self.frame.around(path, api_format, pass_on)

    async def _pass_on(self, path: str, exchange: Exchange, arrival: Arrival, client: AsgiClient) -> None:
        headers = arrival.headers
        await self.door.application(headers)
        body = await arrival.body(self.limits)
        content_type = headers.get("content-type", JSON)
        if not content_type.lower().startswith("multipart/"):
            content_type = JSON
        named = read_model(body, content_type)
        model = named and self.rules().resolve(named)
        if model and model != named:
            body = with_model(body, content_type, model)
        query = f"?{arrival.query.decode('latin-1')}" if arrival.query else ""
        call = Call(path + query, forwarded(headers, content_type, exchange.request_id), body)
        async with WhileConnected(arrival.receive):
            await self.direct.run(model, call, client, exchange.trip)


def _route(path: str, app: ASGIApp) -> ASGIRouteHandler:
    @asgi(path, copy_scope=False)
    async def pass_through(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return pass_through
