"""One engine made known to a running gateway, and taken back."""

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
    """An entry among a gateway's backends.

    Args:
        http: a client of the gateway, with the admin key in its headers.
        fields: the entry, as one of `[[backends]]`.
    """

    http: httpx2.AsyncClient
    fields: dict[str, Any]
    ours: bool = False
    """Whether it is there by us, and for us to take out."""

    async def check(self) -> bool:
        """Tell whether the gateway answers.

        Raises:
            RegistrationError: it does not take the admin key, or is no gateway.
        """
        try:
            response = await self.http.get(PATH)
        except httpx2.RequestError:
            return False
        _require(response, HTTPStatus.OK)
        return True

    async def enter(self) -> None:
        """Enter the engine, as soon as the gateway answers; an entry that an earlier run left is brought up to date.

        Raises:
            RegistrationError: the gateway refuses.
        """
        while True:
            try:
                return await self._enter()
            except httpx2.RequestError:
                await asyncio.sleep(RETRY_S)

    async def withdraw(self) -> bool:
        """Take the engine out: what runs there may end. Tell whether the gateway answered; idempotent."""
        if not self.ours:
            return True
        try:
            response = await self.http.delete(f"{PATH}/{self.fields['name']}")
        except httpx2.RequestError:
            return False
        self.ours = False
        return response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR

    async def _enter(self) -> None:
        response = await self.http.post(PATH, json=self.fields)
        code = _code(response)
        if code == "backend_configured":
            return  # the settings file has it, and keeps it
        if code == "backend_exists":
            changes = {name: value for name, value in self.fields.items() if name not in ("name", "kind")}
            response = await self.http.patch(f"{PATH}/{self.fields['name']}", json=changes)
            _require(response, HTTPStatus.OK)
        else:
            _require(response, HTTPStatus.CREATED)
        self.ours = True


@asynccontextmanager
async def registration_at(gateway: str, admin_key: str, fields: dict[str, Any]) -> AsyncIterator[Registration]:
    """Prepare an entry, and take it out with the block; a gateway that would refuse ends the command at once.

    Args:
        gateway: its URL; it may come up later.
        admin_key: opens its `/admin`.
        fields: the entry, as one of `[[backends]]`.
    """
    headers = {"authorization": f"Bearer {admin_key}"}
    async with httpx2.AsyncClient(base_url=gateway.rstrip("/"), headers=headers, timeout=30) as http:
        registration = Registration(http, fields)
        try:
            if not await registration.check():
                err.print(f"magnus: {gateway} does not answer yet", style="yellow", markup=False, soft_wrap=True)
        except RegistrationError as error:
            bad_input(f"--gateway {gateway}: {error}")
        try:
            yield registration
        finally:
            await registration.withdraw()


def _require(response: httpx2.Response, status: HTTPStatus) -> None:
    if response.status_code == HTTPStatus.UNAUTHORIZED:
        raise RegistrationError("the gateway does not take this admin key")
    if response.status_code != status:
        raise RegistrationError(f"the gateway answered {response.status_code}: {response.text[:300]}")


def _code(response: httpx2.Response) -> object:
    """Return the code of an error in OpenAI's shape, None where there is none."""
    try:
        match response.json():
            case {"error": {"code": code}}:
                return code
            case _:
                return None
    except ValueError:
        return None
