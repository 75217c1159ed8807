"""`DELETE /admin/users/{app}/{user}`: delete everything that is stored of an end user."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

from litestar import Request, delete
from litestar.handlers import HTTPRouteHandler

from gateway.api.auth import require_admin
from gateway.errors import InvalidRequest
from gateway.storage.erasure import Erased

Erase = Callable[[str, str], Awaitable[Erased]]
"""Deletes the stored requests of (app, user)."""

_PREFIX = "/admin/users/"


def user_routes(erase: Erase, forget: Callable[[str, str], int], admin_key: str | None) -> list[HTTPRouteHandler]:
    """Return the route that deletes an end user.

    Args:
        erase: deletes the stored requests.
        forget: deletes what the predictor remembers of the user's answers.
        admin_key: required.
    """

    @delete("/admin/users/{names:path}", status_code=200)
    async def delete_user(request: Request[Any, Any, Any]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        app, user = _names(request.scope["raw_path"])
        erased = await erase(app, user)
        forget(app, user)
        return {"app": app, "user": user, "requests": erased.requests, "pending": erased.pending}

    return [delete_user]


def _names(raw_path: bytes) -> tuple[str, str]:
    """Return application and user. Each may contain any character, because it is percent-encoded."""
    names = raw_path.decode("latin-1").partition("?")[0].removeprefix(_PREFIX).split("/")
    if len(names) != 2 or not all(names):
        raise InvalidRequest("The path must be /admin/users/APP/USER; write / in a name as %2F")
    app, user = (unquote(name, errors="surrogateescape") for name in names)
    return app, user
