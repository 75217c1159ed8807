"""Bounded GET requests to an engine's own pages, with one exception type for every failure."""

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TypeVar

import httpx2
import msgspec

from backends.base import BackendSpec, BackendUnreachableError

T = TypeVar("T")

MAX_PAGE_BYTES = 8 * 1024 * 1024

MAX_CONNECT_S = 2.0
"""Longest wait for a connection and its TLS handshake, which a busy engine delays less than a page."""

MAX_TARGET_CHARS = 200
"""Characters of a redirect's target that an error repeats."""

_TRANSPORT_ERRORS = (httpx2.RequestError, OSError)


class StatusError(BackendUnreachableError):
    """The engine answered with a status other than 200."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of an engine's pages, the transport to it, and the total time limit per page."""

    spec: BackendSpec
    transport: httpx2.AsyncBaseTransport = field(repr=False)
    timeout_s: float

    async def get(self, path: str) -> bytes:
        """Return the page at `path`.

        Raises:
            BackendUnreachableError: no answer in time, no connection, or more than `MAX_PAGE_BYTES` bytes.
            StatusError: the status is not 200.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._read(path)
        except _TRANSPORT_ERRORS as error:
            raise BackendUnreachableError(self._describe(path, self._cause(error))) from error

    async def attempt(self, path: str) -> bytes | BackendUnreachableError:
        """Return the page at `path`, or the error. Concurrent requests are not cancelled by a returned error."""
        try:
            return await self.get(path)
        except BackendUnreachableError as error:
            return error

    def decode(self, path: str, page: bytes, kind: type[T]) -> T:
        """Decode the JSON `page` that was read from `path`.

        Raises:
            BackendUnreachableError: the page does not have the type `kind`.
        """
        try:
            return msgspec.json.decode(page, type=kind)
        except (ValueError, RecursionError) as error:
            raise BackendUnreachableError(self._describe(path, str(error))) from error

    async def _read(self, path: str) -> bytes:
        response = await self.transport.handle_async_request(self._request(path))
        try:
            if response.status_code != HTTPStatus.OK:
                raise StatusError(self._describe(path, _status_cause(response)), response.status_code)
            page = bytearray()
            async for chunk in response.aiter_bytes():
                page += chunk
                if len(page) > MAX_PAGE_BYTES:
                    cause = f"the page is larger than {MAX_PAGE_BYTES} bytes"
                    raise BackendUnreachableError(self._describe(path, cause))
            return bytes(page)
        finally:
            await response.aclose()

    def _request(self, path: str) -> httpx2.Request:
        # On a local network, compressing 60 kB costs both sides more CPU than sending it.
        headers = {"accept-encoding": "identity"}
        if self.spec.api_key is not None:
            headers["authorization"] = f"Bearer {self.spec.api_key}"
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), self.timeout_s)
        timeout["connect"] = min(MAX_CONNECT_S, self.timeout_s)
        url = self.spec.url.rstrip("/") + path
        return httpx2.Request("GET", url, headers=headers, extensions={"timeout": timeout})

    def _describe(self, path: str, cause: str) -> str:
        return f"backend {self.spec.name!r}: GET {path}: {cause}"

    def _cause(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self.timeout_s:g} s"
        cause = " ".join(str(error).split()) or type(error).__name__
        if "SSL: WRONG_VERSION_NUMBER" in cause:
            cause += "; the engine probably does not use TLS: try an http:// URL"
        if isinstance(error, httpx2.ConnectTimeout) and self.spec.url.startswith("https:"):
            cause += " (TCP and TLS); if the engine does not use TLS, use an http:// URL"
        return cause.replace(self.spec.api_key, "***") if self.spec.api_key else cause


def redirect_target(response: httpx2.Response) -> str:
    """Return where a redirect leads, without a query and without credentials; "" if that is not stated.

    >>> redirect_target(httpx2.Response(307, headers={"location": "https://me:secret@gpu/v1/models/?key=x"}))
    'https://gpu/v1/models/'
    """
    target = str(response.headers.get("location", "")).partition("?")[0].partition("#")[0]
    scheme, separator, rest = target.partition("//")
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    return (f"{scheme}{separator}{host}{slash}{path}" if separator else target)[:MAX_TARGET_CHARS]


def _status_cause(response: httpx2.Response) -> str:
    """Return the status of a page that was not answered, with what the operator can do about it."""
    status = response.status_code
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"status {status}: the engine refuses the credentials; check api_key"
    if status == HTTPStatus.NOT_FOUND:
        return f"status {status}: the server has no such page; check url and kind"
    if 300 <= status < 400:
        return f"status {status}: the engine redirects to {redirect_target(response) or 'nowhere'}; check url"
    return f"status {status}"
