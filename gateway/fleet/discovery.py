"""Backends whose host name has many addresses: one pool entry for each address, kept up to date.

An entry is named after the backend and its address, `gpu@10.0.0.3`, and its URL contains the address instead of the
host name. Engines ignore that their `Host` header is then an address. A TLS certificate could not be checked, so the
URL must be http.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from urllib.parse import urlsplit

from backends.base import Backend, BackendSpec
from gateway.fleet.pool import BackendPool

INTERVAL_S = 30.0
"""Time between two lookups of all host names."""

Resolve = Callable[[str], Awaitable[Iterable[str]]]
"""Returns the addresses of a host name. Raises OSError if the lookup fails."""

_log = logging.getLogger(__name__)


async def resolve_host(host: str) -> set[str]:
    """Return the addresses of a host name.

    Raises:
        OSError: the lookup failed, or the host has no address.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}


class Discovery:
    """Adds entries for new addresses to the pool and drains those of addresses that are gone.

    Args:
        pool: where the entries are.
        connect: creates the adapter of a backend.
        resolve: looks up the addresses of a host name.
        on_failure: called with the backend's name when a lookup fails. Its entries stay.

    Attributes:
        errors: why the last lookup failed, by backend; without those whose last lookup succeeded.
    """

    def __init__(
        self,
        pool: BackendPool,
        connect: Callable[[BackendSpec], Backend],
        resolve: Resolve = resolve_host,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._connect = connect
        self._resolve = resolve
        self._on_failure = on_failure
        self._watched: dict[str, BackendSpec] = {}
        self._draining: set[str] = set()
        self.errors: dict[str, str] = {}
        self._refresh_now = asyncio.Event()

    def watch(self, spec: BackendSpec) -> None:
        """Look up a backend's host name from now on."""
        self._watched[spec.name] = spec
        self._refresh_now.set()

    async def change(self, spec: BackendSpec) -> None:
        """Apply a backend's new settings to all of its entries."""
        moved = self._watched[spec.name].url != spec.url
        self.watch(spec)
        for name in () if moved else self._entry_names(spec.name):
            await self._pool.replace(self._connect(_at(spec, name.partition("@")[2])))

    def drain(self, name: str, draining: bool) -> None:
        """Drain a backend at every address, also at those found later; or give it requests again."""
        (self._draining.add if draining else self._draining.discard)(name)
        for entry_name in self._entry_names(name):
            self._pool.drain(entry_name, draining)

    def forget(self, name: str, *, force: bool) -> None:
        """Remove all entries of a backend; with `force`, at once."""
        self._watched.pop(name, None)
        self.errors.pop(name, None)
        self._draining.discard(name)
        for entry_name in self._entry_names(name):
            self._pool.remove(entry_name, force=force)

    async def run(self) -> None:
        """Look up all host names again and again until cancelled."""
        while True:
            self._refresh_now.clear()
            await asyncio.gather(*map(self.refresh, list(self._watched.values())))
            try:
                async with asyncio.timeout(INTERVAL_S * random.uniform(0.9, 1.1)):
                    await self._refresh_now.wait()
            except TimeoutError:
                continue

    async def refresh(self, spec: BackendSpec) -> None:
        """Look up one backend's host name, and update its entries."""
        try:
            addresses = await self._resolve(urlsplit(spec.url).hostname or "")
        except OSError as error:
            self._note_failure(spec.name, str(error))
            self._on_failure(spec.name)
            return
        if self.errors.pop(spec.name, None):
            _log.info("The addresses of backend %s can be looked up again", spec.name)
        if self._watched.get(spec.name) != spec:
            return  # it was removed or changed during the lookup
        wanted = {at.name: at for at in (_at(spec, address) for address in addresses)}
        for name in self._entry_names(spec.name):
            if name not in wanted:
                self._pool.remove(name)
        for at in wanted.values():
            await self._enter(at, draining=spec.name in self._draining)

    def _note_failure(self, name: str, reason: str) -> None:
        """Note that a lookup failed, and log it if the reason is new."""
        if self.errors.get(name) != reason:
            _log.warning("The addresses of backend %s cannot be looked up: %s", name, reason)
        self.errors[name] = reason

    async def _enter(self, spec: BackendSpec, *, draining: bool) -> None:
        entry = self._pool.entries.get(spec.name)
        if entry is None:
            self._pool.add(self._connect(spec))
            if draining:
                self._pool.drain(spec.name, True)
        elif entry.backend.spec != spec or entry.leaving:
            await self._pool.replace(self._connect(spec))

    def _entry_names(self, name: str) -> list[str]:
        return [entry_name for entry_name in self._pool.entries if entry_name.startswith(f"{name}@")]


def _at(spec: BackendSpec, address: str) -> BackendSpec:
    """Return the backend at one of its addresses."""
    url = urlsplit(spec.url)
    host = f"[{address}]" if ":" in address else address
    netloc = host if url.port is None else f"{host}:{url.port}"
    return replace(spec, name=f"{spec.name}@{address}", url=url._replace(netloc=netloc).geturl())
