"""The routes that are not generations: they pass through to the least loaded backend of their model, unscheduled.

Such a request needs the same API key as a generation. It is counted in the metrics, but not recorded in the history.
"""

from collections.abc import Callable
from dataclasses import dataclass

from litestar.handlers import ASGIRouteHandler

from gateway.api.asgi import JSON, AsgiClient, Limits, WhileConnected, off_loop
from gateway.api.auth import Authenticator
from gateway.api.generation import forwarded_headers
from gateway.api.middleware import Middleware
from gateway.dispatch.context import RequestContext
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.fleet.breaker import fingerprint_of
from gateway.protocol.api_formats import COMPLETIONS, MESSAGES, ApiFormat
from gateway.protocol.forms import read_model, with_model, without_privileges
from gateway.protocol.generation_request import ModelRules
from gateway.upstream.client import UpstreamRequest

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
    "/v1/messages/count_tokens": MESSAGES,
}
"""The path of each route, and the API whose format its errors have."""

FINGERPRINT_BYTES = 4096
"""Bytes at the start of a body that tell requests of one application apart when an engine fails them."""


@dataclass(frozen=True, slots=True)
class Passthrough:
    """Answers requests that are not generations; `rules` returns the current model rules."""

    authenticator: Authenticator
    proxy: PassthroughProxy
    middleware: Middleware
    limits: Limits
    rules: Callable[[], ModelRules]

    def routes(self) -> list[ASGIRouteHandler]:
        """Return the route of each path."""
        return [self.middleware.route(path, api_format, self.answer) for path, api_format in PATHS.items()]

    async def answer(self, context: RequestContext, client: AsgiClient) -> None:
        """Answer one request.

        Raises:
            GatewayError: the request is rejected or failed.
        """
        app = await self.authenticator.application(client.headers)
        body = await client.body(self.limits, app)
        content_type = client.headers.get("content-type", JSON)
        if not content_type.lower().startswith("multipart/"):
            content_type = JSON
        named, body = await off_loop(body, self._reader(context, content_type))
        model = named and self.rules().resolve(named)
        if model and model != named:
            body = with_model(body, content_type, model)
        context.fingerprint = fingerprint_of(app, context.route, body[:FINGERPRINT_BYTES], len(body))
        query = f"?{client.query.decode('latin-1')}" if client.query else ""
        headers = forwarded_headers(client.headers, content_type, context.id)
        upstream_request = UpstreamRequest(context.route + query, headers, body)
        async with WhileConnected(client.receive):
            await self.proxy.run(context, model, upstream_request, client)

    def _reader(self, context: RequestContext, content_type: str) -> Callable[[bytes], tuple[str | None, bytes]]:
        """Return a function from a body to the model that it names and the body for the engine."""
        return lambda body: (
            read_model(body, content_type),
            without_privileges(body, content_type, context.id),
        )
