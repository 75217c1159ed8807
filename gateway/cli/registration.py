"""The registration of one engine at a running gateway."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx2

from gateway.cli.options import bad_input, err
from gateway.errors import RegistrationError

PATH = "/admin/backends"
RETRY_S = 2.0


@dataclass(slots=True)
class Registration:
    """One backend of a gateway.

    Args:
        http: a client of the gateway, with the admin key in its headers.
        fields: the backend's settings, with the keys of `[[backends]]`.
    """

    http: httpx2.AsyncClient
    fields: dict[str, Any]
    owned: bool = False
    """Whether this command has added the backend, and so removes it at the end."""

    async def check(self) -> bool:
        """Return whether the gateway answers.

        Raises:
            RegistrationError: the gateway rejects the admin key, or is not a Magnus gateway.
        """
        try:
            response = await self.http.get(PATH)
        except httpx2.RequestError:
            return False
        _require(response, HTTPStatus.OK)
        return True

    async def add(self) -> None:
        """Add the backend when the gateway answers. If an earlier run left it there, update it.

        Raises:
            RegistrationError: the gateway refuses the backend.
        """
        while True:
            try:
                return await self._add()
            except httpx2.RequestError:
                await asyncio.sleep(RETRY_S)

    async def withdraw(self) -> bool:
        """Remove the backend; its running requests may finish. Return whether the gateway answered.

        A second call does nothing.
        """
        if not self.owned:
            return True
        try:
            response = await self.http.delete(f"{PATH}/{self.fields['name']}")
        except httpx2.RequestError:
            return False
        self.owned = False
        return response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR

    async def _add(self) -> None:
        response = await self.http.post(PATH, json=self.fields)
        code = _code(response)
        if code == "backend_configured":
            return  # the settings file contains it, so it stays
        if code == "backend_exists":
            changes = {name: value for name, value in self.fields.items() if name not in ("name", "kind")}
            response = await self.http.patch(f"{PATH}/{self.fields['name']}", json=changes)
            _require(response, HTTPStatus.OK)
        else:
            _require(response, HTTPStatus.CREATED)
        self.owned = True


@asynccontextmanager
async def registration_at(gateway: str, admin_key: str, fields: dict[str, Any]) -> AsyncIterator[Registration]:
    """Yield a registration that is withdrawn at the end of the block. A rejected admin key ends the command at once.

    Args:
        gateway: the gateway's URL. The gateway may start later.
        admin_key: the gateway's admin key.
        fields: the backend's settings, with the keys of `[[backends]]`.
    """
    headers = {"authorization": f"Bearer {admin_key}"}
    async with httpx2.AsyncClient(base_url=gateway.rstrip("/"), headers=headers, timeout=30) as http:
        registration = Registration(http, fields)
        try:
            if not await registration.check():
                err.print(
                    f"magnus: the gateway {gateway} does not answer yet; waiting",
                    style="yellow",
                    markup=False,
                    soft_wrap=True,
                )
        except RegistrationError as error:
            bad_input(f"--gateway {gateway}: {error}")
        try:
            yield registration
        finally:
            await registration.withdraw()


def _require(response: httpx2.Response, status: HTTPStatus) -> None:
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        raise RegistrationError("the gateway rejects this admin key")
    if response.status_code != status:
        raise RegistrationError(f"the gateway answered {response.status_code}: {response.text[:300]}")


def _code(response: httpx2.Response) -> object:
    """Return the code of an error in OpenAI's format, or None."""
    try:
        match response.json():
            case {"error": {"code": code}}:
                return code
            case _:
                return None
    except ValueError:
        return None
