"""`/admin/backends`: backends added, changed, drained and taken out while the gateway runs."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

import msgspec
from litestar import Request, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from gateway.api.auth import require_admin
from gateway.errors import InvalidRequest


class Registry(Protocol):
    """Keeps the backends; what it raises is answered as it is."""

    def names(self) -> Mapping[str, str]:
        """Return where each backend is from."""
        ...

    def fields(self, name: str) -> dict[str, Any]:
        """Return what is set of a backend."""
        ...

    async def add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a backend."""
        ...

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a backend."""
        ...

    async def remove(self, name: str, *, force: bool) -> None:
        """Take out a backend."""
        ...


_Request = Request[Any, Any, Any]


def backend_routes(
    registry: Registry, shown: Callable[[], list[dict[str, Any]]], admin_key: str | None
) -> list[HTTPRouteHandler]:
    """Return `GET` and `POST /admin/backends`, and `PATCH` and `DELETE /admin/backends/{name}`.

    Args:
        registry: keeps the backends.
        shown: how those that serve fare, by their `name`, as the stats have it.
        admin_key: opens all of them.
    """

    def entry(fields: dict[str, Any]) -> dict[str, Any]:
        """What is set of a backend, and how each of its addresses fares."""
        return {**fields, "members": [member for member in shown() if member["name"] in fields["members"]]}

    @get("/admin/backends")
    async def list_backends(request: _Request) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return {"backends": [entry(registry.fields(name)) for name in registry.names()]}

    @post("/admin/backends")
    async def add_backend(request: _Request) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return entry(await registry.add(_fields(await request.body())))

    @patch("/admin/backends/{name:str}")
    async def change_backend(request: _Request, name: FromPath[str]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        return entry(await registry.change(name, _fields(await request.body())))

    @delete("/admin/backends/{name:str}", status_code=HTTPStatus.ACCEPTED)
    async def remove_backend(request: _Request, name: FromPath[str]) -> dict[str, Any]:
        require_admin(admin_key, dict(request.headers))
        await registry.remove(name, force=_flag(request.query_params.get("force")))
        draining = [member["name"] for member in shown() if member["name"].partition("@")[0] == name]
        return {"name": name, "draining": draining}

    return [list_backends, add_backend, change_backend, remove_backend]


def _fields(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not a JSON object: {error}") from error


def _flag(text: str | None) -> bool:
    if text not in {None, "true", "false"}:
        raise InvalidRequest("force: true or false expected", param="force")
    return text == "true"
