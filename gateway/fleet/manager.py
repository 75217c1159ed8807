"""Which backends there are: those of the settings, those added while the gateway runs, and who is behind their names.

The settings' own are theirs to change; the others are kept in the database before they are taken in, so that a restart
has them, and a database that is away changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from backends.base import Backend, BackendSpec
from gateway.config import BackendSettings, read_backend
from gateway.errors import (
    BackendExists,
    BackendNotFound,
    BackendsUnavailable,
    ConfiguredBackend,
    InvalidRequest,
    SettingsError,
)
from gateway.fleet.discovery import Discovery
from gateway.fleet.pool import BackendPool
from gateway.storage.backend_store import BackendStore, StoredBackend
from gateway.storage.database import DATABASE_ERRORS

_log = logging.getLogger(__name__)


class BackendManager:
    """Adds, changes and takes out backends.

    Args:
        configured: the settings' backends; the pool begins with those of them that are one address.
        pool: where they serve.
        discovery: finds the addresses behind the names of others.
        store: keeps those that are added at run time.
        connect: makes the adapter of one.
    """

    def __init__(
        self,
        configured: Iterable[BackendSettings],
        *,
        pool: BackendPool,
        discovery: Discovery,
        store: BackendStore,
        connect: Callable[[BackendSpec], Backend],
    ) -> None:
        self._configured = {backend.name: backend for backend in configured}
        self._kept: dict[str, BackendSettings] = {}
        self._draining: set[str] = set()
        self.pool = pool
        self.discovery = discovery
        self._store = store
        self._connect = connect
        self._changing = asyncio.Lock()
        for backend in self._configured.values():
            if backend.resolve == "each":
                discovery.watch(spec_of(backend))

    async def restore(self) -> None:
        """Take in the backends that earlier runs have kept, but for names that the settings use."""
        async with self._changing:
            for kept in await self._store.list():
                if kept.name in self._configured or kept.name in self._kept:
                    continue
                try:
                    backend = self._read({**kept.fields, "name": kept.name})
                except InvalidRequest as error:
                    _log.error("The kept backend %s is left out: %s", kept.name, error)
                    continue
                self._kept[kept.name] = backend
                self._enter(backend)
                if kept.draining:
                    self._drain(kept.name, draining=True)

    def names(self) -> Mapping[str, str]:
        """Return where each backend is from: `file` or `admin`."""
        return dict.fromkeys(self._kept, "admin") | dict.fromkeys(self._configured, "file")

    def fields(self, name: str) -> dict[str, Any]:
        """Return what is set of a backend, without its key.

        Raises:
            BackendNotFound: there is none of that name.
        """
        backend = self._configured.get(name) or self._kept.get(name)
        if backend is None:
            raise BackendNotFound(f"There is no backend {name[:100]!r}", param="name")
        shown = {**msgspec.to_builtins(backend), "has_api_key": backend.api_key is not None}
        del shown["api_key"]
        where = {"source": self.names()[name], "draining": name in self._draining, "members": self._entry_names(name)}
        return shown | where

    async def add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a backend.

        Raises:
            InvalidRequest: a field is wrong, and `param` names it.
            BackendExists: its name is taken.
            ConfiguredBackend: its name is taken by one of the settings.
            BackendsUnavailable: the database is away; nothing has changed.
        """
        backend = self._read(fields)
        async with self._changing:
            if backend.name in self._configured:
                raise ConfiguredBackend(f"{backend.name} is in the settings file", param="name")
            if backend.name in self._kept:
                raise BackendExists(f"There is a backend {backend.name!r} already", param="name")
            await self._keep(backend, draining=False)
            self._kept[backend.name] = backend
            self._enter(backend)
        _log.info("Backend %s was added", backend.name)
        return self.fields(backend.name)

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a backend; of the settings' own, only whether it drains.

        Raises:
            InvalidRequest: a field is wrong, and `param` names it.
            BackendNotFound: there is none of that name.
            ConfiguredBackend: it is the settings' to change.
            BackendsUnavailable: the database is away; nothing has changed.
        """
        if "name" in changes:
            raise InvalidRequest("name: cannot be changed", param="name")
        async with self._changing:
            self.fields(name)  # there is one of that name
            draining = changes.get("draining", name in self._draining)
            if not isinstance(draining, bool):
                raise InvalidRequest("draining: true or false expected", param="draining")
            others = {field: value for field, value in changes.items() if field != "draining"}
            if name not in self._configured:
                old = self._kept[name]
                backend = self._read({**msgspec.to_builtins(old), **others})
                await self._keep(backend, draining=draining)
                self._kept[name] = backend
                await self._replace(old, backend)
            elif others:
                raise ConfiguredBackend(f"{name} is in the settings file: change it there, and reload")
            self._drain(name, draining)
        _log.info("Backend %s was changed: %s", name, ", ".join(sorted(changes)))
        return self.fields(name)

    async def remove(self, name: str, *, force: bool) -> None:
        """Drain a backend and take it out; at once with `force`.

        Raises:
            BackendNotFound: there is none of that name.
            ConfiguredBackend: it is the settings' to take out.
            BackendsUnavailable: the database is away; nothing has changed.
        """
        async with self._changing:
            if name in self._configured:
                raise ConfiguredBackend(f"{name} is in the settings file: take it out there, and reload; or drain it")
            if name not in self._kept:
                self._leave_for_good(name, force=force)
                return
            try:
                await self._store.remove(name)
            except DATABASE_ERRORS as error:
                raise BackendsUnavailable("The database is away; the backend stays") from error
            self._leave(self._kept.pop(name), force=force)
        _log.info("Backend %s was taken out", name)

    async def configure(self, backends: Iterable[BackendSettings]) -> None:
        """Go over to other settings: take in what is new, change what has changed, drain what is gone.

        Raises:
            ValueError: one cannot be connected to; nothing has changed.
        """
        backends = list(backends)
        for backend in backends:
            self._connect(spec_of(backend))  # what cannot be connected to is refused before anything has changed
        async with self._changing:
            old, new = self._configured, {backend.name: backend for backend in backends}
            self._configured = new
            for name, backend in new.items():
                before = old.get(name) or self._kept.pop(name, None)
                if before is None:
                    self._enter(backend)
                else:
                    await self._replace(before, backend)
            if gone := old.keys() - new.keys():  # not before those that come in their place can serve
                await asyncio.gather(*(self._look_at(backend) for name, backend in new.items() if name not in old))
            for name in gone:
                self._leave(old[name], force=False)

    async def _look_at(self, backend: BackendSettings) -> None:
        if backend.resolve == "each":
            await self.discovery.refresh(spec_of(backend))
        for name in self._entry_names(backend.name):
            await self.pool.scrape(self.pool.entries[name])

    def _leave_for_good(self, name: str, *, force: bool) -> None:
        """Take out at once what is on its way out already."""
        entries = [entry for entry in self._entry_names(name) if self.pool.entries[entry].leaving]
        if not entries:
            raise BackendNotFound(f"There is no backend {name[:100]!r}", param="name")
        for entry in entries:
            self.pool.remove(entry, force=force)

    def _entry_names(self, name: str) -> list[str]:
        return [entry for entry in self.pool.entries if entry == name or entry.startswith(f"{name}@")]

    async def _keep(self, backend: BackendSettings, *, draining: bool) -> None:
        fields = {k: v for k, v in msgspec.to_builtins(backend).items() if k != "name" and v is not None}
        try:
            await self._store.save(StoredBackend(backend.name, fields, draining))
        except DATABASE_ERRORS as error:
            raise BackendsUnavailable("The database is away; nothing was changed") from error

    def _enter(self, backend: BackendSettings) -> None:
        if backend.resolve == "each":
            self.discovery.watch(spec_of(backend))
        else:
            if backend.name in self.pool.entries:  # on its way out
                self.pool.remove(backend.name, force=True)
            self.pool.add(self._connect(spec_of(backend)))

    async def _replace(self, old: BackendSettings, new: BackendSettings) -> None:
        if old == new:
            return
        if old.resolve == new.resolve == "once":
            await self.pool.replace(self._connect(spec_of(new)))
        elif old.resolve == new.resolve:
            await self.discovery.change(spec_of(new))
        else:
            self._leave(old, force=False)
            self._enter(new)

    def _leave(self, backend: BackendSettings, *, force: bool) -> None:
        self._draining.discard(backend.name)
        if backend.resolve == "each":
            self.discovery.forget(backend.name, force=force)
        elif backend.name in self.pool.entries:
            self.pool.remove(backend.name, force=force)

    def _read(self, fields: Mapping[str, Any]) -> BackendSettings:
        """Read what was set of a backend.

        Raises:
            InvalidRequest: a field is wrong, and `param` names it.
        """
        try:
            backend = read_backend(fields)
            self._connect(spec_of(backend))
        except SettingsError as error:
            raise InvalidRequest(str(error), param=error.field) from error
        except ValueError as error:
            raise InvalidRequest("url: not one that can be connected to", param="url") from error
        return backend

    def _drain(self, name: str, draining: bool) -> None:
        (self._draining.add if draining else self._draining.discard)(name)
        self.discovery.drain(name, draining)
        if name in self.pool.entries:
            self.pool.drain(name, draining)


def spec_of(backend: BackendSettings) -> BackendSpec:
    """Return what an adapter is told of a backend."""
    return BackendSpec(
        name=backend.name,
        kind=backend.kind,
        url=backend.url.rstrip("/"),
        api_key=backend.api_key,
        models=None if backend.models is None else tuple(backend.models),
        kv_tokens=backend.kv_tokens,
        max_concurrency=backend.max_concurrency,
        priority=backend.priority,
        first_byte_timeout_s=backend.first_byte_timeout_s,
        idle_timeout_s=backend.idle_timeout_s,
        total_timeout_s=backend.total_timeout_s,
    )
