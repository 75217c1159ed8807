"""Backends whose name stands for many addresses: one entry of the pool for each, kept up to date.

A entry is named after the backend and its address, `gpu@10.0.0.3`, and its URL has the address in the name's place.
So its engine is told the address as `Host`, which engines do not look at, and a certificate could not be checked: this
is for http alone.
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
"""Between two looks at the names."""

Resolve = Callable[[str], Awaitable[Iterable[str]]]
"""A host's name to its addresses; raises OSError where it has none, or nobody answers."""

_log = logging.getLogger(__name__)


async def resolve_host(host: str) -> set[str]:
    """Ask the system for the addresses of a name.

    Raises:
        OSError: it has none, or nobody answers.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return {str(address[0]) for *_, address in found}


class Discovery:
    """Watches names, and adds and drains entries of the pool as their addresses come and go.

    Args:
        pool: where the entries serve.
        connect: makes the adapter of one.
        resolve: asks for a name's addresses.
        on_failure: told the name of a backend whose addresses cannot be had; those that it has stay.
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
        self._look_now = asyncio.Event()

    def watch(self, spec: BackendSpec) -> None:
        """Begin to look at a backend's name."""
        self._watched[spec.name] = spec
        self._look_now.set()

    async def change(self, spec: BackendSpec) -> None:
        """Tell all entries of a backend what has changed of it."""
        moved = self._watched[spec.name].url != spec.url
        self.watch(spec)
        for name in () if moved else self._entry_names(spec.name):
            await self._pool.replace(self._connect(_at(spec, name.partition("@")[2])))

    def drain(self, name: str, draining: bool) -> None:
        """Drain a backend at every address, also at those that are found later; or let it take work again."""
        (self._draining.add if draining else self._draining.discard)(name)
        for entry in self._entry_names(name):
            self._pool.drain(entry, draining)

    def forget(self, name: str, *, force: bool) -> None:
        """Take out a backend's entries."""
        self._watched.pop(name, None)
        self._draining.discard(name)
        for entry in self._entry_names(name):
            self._pool.remove(entry, force=force)

    async def run(self) -> None:
        """Look at all names, again and again; ends by being cancelled."""
        while True:
            self._look_now.clear()
            await asyncio.gather(*map(self.refresh, list(self._watched.values())))
            try:
                async with asyncio.timeout(INTERVAL_S * random.uniform(0.9, 1.1)):
                    await self._look_now.wait()
            except TimeoutError:
                continue

    async def refresh(self, spec: BackendSpec) -> None:
        """Bring the entries of one backend in line with the addresses that its name has now."""
        try:
            addresses = await self._resolve(urlsplit(spec.url).hostname or "")
        except OSError as error:
            _log.warning("No addresses for backend %s: %s", spec.name, error)
            self._on_failure(spec.name)
            return
        if self._watched.get(spec.name) != spec:
            return  # it was taken out or changed meanwhile
        wanted = {entry.name: entry for entry in (_at(spec, address) for address in addresses)}
        for name in self._entry_names(spec.name):
            if name not in wanted:
                self._pool.remove(name)
        for name, entry in wanted.items():
            present = self._pool.entries.get(name)
            if present is None:
                self._pool.add(self._connect(entry))
                if spec.name in self._draining:
                    self._pool.drain(name, True)
            elif present.backend.spec != entry or present.leaving:
                await self._pool.replace(self._connect(entry))

    def _entry_names(self, name: str) -> list[str]:
        return [entry for entry in self._pool.entries if entry.startswith(f"{name}@")]


def _at(spec: BackendSpec, address: str) -> BackendSpec:
    url = urlsplit(spec.url)
    host = f"[{address}]" if ":" in address else address
    where = host if url.port is None else f"{host}:{url.port}"
    return replace(spec, name=f"{spec.name}@{address}", url=url._replace(netloc=where).geturl())
