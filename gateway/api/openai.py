"""OpenAI's routes."""

from typing import Any

from litestar import asgi, get
from litestar.connection import ASGIConnection
from litestar.handlers import ASGIRouteHandler, HTTPRouteHandler
from litestar.params import FromPath
from litestar.types import Receive, Scope, Send

from gateway.api.auth import Door
from gateway.api.generation import Generations
from gateway.api.jobs import CHAT, COMPLETION
from gateway.dispatch.pool import Pool
from gateway.errors import ModelNotFound


def generation_routes(generations: Generations) -> list[ASGIRouteHandler]:
    """Return `/v1/chat/completions` and `/v1/completions`."""
    chat, completions = generations.answering(CHAT), generations.answering(COMPLETION)

    @asgi(CHAT.path, copy_scope=False)
    async def chat_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await chat(scope, receive, send)

    @asgi(COMPLETION.path, copy_scope=False)
    async def text_completions(scope: Scope, receive: Receive, send: Send) -> None:
        await completions(scope, receive, send)

    return [chat_completions, text_completions]


def model_routes(pool: Pool, door: Door, *, started_at: int) -> list[HTTPRouteHandler]:
    """Return `/v1/models` and `/v1/models/{id}`: what the backends serve, as one list.

    Args:
        pool: the backends.
        door: who may ask.
        started_at: Unix seconds; OpenAI's cards have a time of creation.
    """

    def cards() -> list[dict[str, Any]]:
        common = {"object": "model", "created": started_at, "owned_by": "magnus"}
        return [{"id": c.id, **common, "max_model_len": c.max_model_len} for c in pool.models().values()]

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
