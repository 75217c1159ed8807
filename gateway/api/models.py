"""`/v1/models`: the models that the backends serve."""

from collections.abc import Callable
from typing import Any

from litestar import get
from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.api.auth import Authenticator
from gateway.errors import ModelNotFound
from gateway.fleet.pool import BackendPool
from gateway.protocol.generation_request import ModelRules


def model_routes(
    pool: BackendPool, authenticator: Authenticator, *, started_at: int, rules: Callable[[], ModelRules]
) -> list[HTTPRouteHandler]:
    """Return `/v1/models` and `/v1/models/{id}`.

    Args:
        pool: the backends and their models.
        authenticator: rejects requests that may not use the gateway.
        started_at: Unix time in seconds; OpenAI's model objects have a time of creation.
        rules: returns the current rules; the aliases of models that are served are listed too.
    """

    def cards() -> list[dict[str, Any]]:
        common = {"object": "model", "created": started_at, "owned_by": "magnus"}
        served = pool.models()
        aliases = {alias: served[model] for alias, model in rules().aliases.items() if model in served}
        return [{"id": id, **common, "max_model_len": c.max_model_len} for id, c in (served | aliases).items()]

    @get("/v1/models")
    async def list_models(request: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
        await authenticator.application(dict(request.headers))
        return {"object": "list", "data": cards()}

    @get("/v1/models/{model:path}")
    async def show_model(request: ASGIConnection[Any, Any, Any, Any], model: FromPath[str]) -> dict[str, Any]:
        await authenticator.application(dict(request.headers))
        wanted = model.removeprefix("/")
        for card in cards():
            if card["id"] == wanted:
                return card
        raise ModelNotFound(f"The model {wanted[:200]!r} does not exist", param="model")

    return [list_models, show_model]
