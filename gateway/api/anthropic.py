"""Anthropic's routes; `/v1/messages/count_tokens` is no generation and passes through."""

from litestar import asgi
from litestar.handlers import ASGIRouteHandler
from litestar.types import Receive, Scope, Send

from gateway.api.generation import Generations
from gateway.api.jobs import MESSAGES


def message_routes(generations: Generations) -> list[ASGIRouteHandler]:
    """Return `/v1/messages`."""
    answer = generations.answering(MESSAGES)

    @asgi(MESSAGES.path, copy_scope=False)
    async def messages(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(scope, receive, send)

    return [messages]
