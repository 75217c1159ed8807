"""OpenAI's routes."""

from collections.abc import Callable
from typing import Any

from litestar import asgi, get
from litestar.connection import ASGIConnection
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from gateway.api.anthropic import message_routes
from gateway.api.auth import Authenticator
from gateway.api.generation import Generations
from gateway.api.jobs import CHAT, COMPLETION, RESPONSE
from gateway.api.passthrough import Passthrough
from gateway.dispatch.passthrough_proxy import PassthroughProxy
from gateway.errors import ModelNotFound
from gateway.fleet.pool import BackendPool
from gateway.protocol.model_rules import ModelRules


def generation_routes(generations: Generations, passthrough_proxy: PassthroughProxy) -> list[ASGIRouteHandler]:
    """Return the routes that engines answer: generations of either API, and what passes through."""
    chat, completions = generations.answering(CHAT), generations.answering(COMPLETION)
    response = generations.answering(RESPONSE)

    @asgi(CHAT.path, copy_scope=False)
    async def chat_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await chat(scope, receive, send)

    @asgi(COMPLETION.path, copy_scope=False)
    async def text_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await completions(scope, receive, send)

    @asgi(RESPONSE.path, copy_scope=False)
    async def responses(scope: Scope, receive: Receive, send: Send) -> None:
        await response(scope, receive, send)

    passthrough = Passthrough(
        generations.door,
        passthrough_proxy,
        generations.frame,
        generations.limits,
        generations.rules,
    )
    return [chat_completions, text_completions, responses, *message_routes(generations), *passthrough.routes()]


def model_routes(
    pool: BackendPool, door: Authenticator, *, started_at: int, rules: Callable[[], ModelRules] = ModelRules
) -> list[HTTPRouteHandler]:
    """Return `/v1/models` and `/v1/models/{id}`: what the backends serve, as one list.

    Args:
        pool: the backends.
        door: who may ask.
        started_at: Unix seconds; OpenAI's cards have a time of creation.
        rules: those of the moment; an alias of a model that is served is listed too.
    """

    def cards() -> list[dict[str, Any]]:
        common = {"object": "model", "created": started_at, "owned_by": "magnus"}
        served = pool.models()
        named = {alias: served[model] for alias, model in rules().aliases.items() if model in served}
        return [{"id": id, **common, "max_model_len": c.max_model_len} for id, c in (served | named).items()]

    @get("/v1/models")
    async def list_models(request: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
        await door.application(dict(request.headers))
        return {"object": "list", "data": cards()}

    @get("/v1/models/{model:path}")
    async def show_model(request: ASGIConnection[Any, Any, Any, Any], model: FromPath[str]) -> dict[str, Any]:
        await door.application(dict(request.headers))
        wanted = model.removeprefix("/")
        for card in cards():
            if card["id"] == wanted:
                return card
        raise ModelNotFound(f"The model {wanted[:200]!r} does not exist", param="model")

    return [list_models, show_model]
