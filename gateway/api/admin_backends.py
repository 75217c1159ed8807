"""`/admin/backends`: add, change, drain and remove backends while the gateway runs."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.api.auth import require_admin
from gateway.errors import InvalidRequest


class BackendEditor(Protocol):
    """Changes the backends while the gateway runs. The route answers its errors as they are.

    The fleet's manager implements it. It reads the settings, which this package must not import.
    """

    def names(self) -> Mapping[str, str]:
        """Return the name of every backend, and where it was defined."""
        ...

    def fields(self, name: str) -> dict[str, Any]:
        """Return the settings of a backend."""
        ...

    async def add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add a backend; return its settings."""
        ...

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change the settings of a backend; return all of them."""
        ...

    async def remove(self, name: str, *, force: bool) -> None:
        """Remove a backend when its running requests have finished, or with `force` at once."""
        ...


_Request = Request[Any, Any, Any]


def backend_routes(
    manager: BackendEditor, states: Callable[[], list[dict[str, Any]]], admin_key: str | None
) -> list[HTTPRouteHandler]:
    """Return `GET` and `POST /admin/backends`, and `PATCH` and `DELETE /admin/backends/{name}`.

    Args:
        manager: adds, changes and removes backends.
        states: returns the state of every backend in the pool, as `/admin/stats` shows it.
        admin_key: required for all of these routes.
    """

    def entry(fields: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a backend, and the state of each of its addresses."""
        return {**fields, "members": [state for state in states() if state["name"] in fields["members"]]}

    @get("/admin/backends")
    async def list_backends(request: _Request) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return {"backends": [entry(manager.fields(name)) for name in manager.names()]}

    @post("/admin/backends")
    async def add_backend(request: _Request) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return entry(await manager.add(_fields(await request.body())))

    @patch("/admin/backends/{name:str}")
    async def change_backend(request: _Request, name: FromPath[str]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return entry(await manager.change(name, _fields(await request.body())))

    @delete("/admin/backends/{name:str}", status_code=HTTPStatus.ACCEPTED)
    async def remove_backend(request: _Request, name: FromPath[str]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        await manager.remove(name, force=_flag(request.query_params.get("force")))
        draining = [state["name"] for state in states() if state["name"].partition("@")[0] == name]
        return {"name": name, "draining": draining}

    return [list_backends, add_backend, change_backend, remove_backend]


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body must be a JSON object: {error}") from error


def _flag(text: str | None) -> bool:
    if text not in {None, "true", "false"}:
        raise InvalidRequest("force: must be true or false", param="force")
    return text == "true"
