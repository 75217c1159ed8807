"""Which backends exist: those of the settings file, and those that an operator added while the gateway runs.

Only the settings file can change the former. The latter are stored in the database before they are used, so that they
are still there after a restart. While the database is unavailable, they cannot change.
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
    """Adds, changes and removes backends.

    Args:
        configured: backends of the settings file; the pool already has those with `resolve = "once"`.
        pool: the backends that get requests.
        discovery: looks up the addresses of backends with `resolve = "each"`.
        store: stores the backends that are added while the gateway runs.
        connect: creates the adapter of a backend.
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
        self.pool = pool
        self.discovery = discovery
        self._configured = {backend.name: backend for backend in configured}
        self._stored: dict[str, BackendSettings] = {}
        self._draining: set[str] = set()
        self._store = store
        self._connect = connect
        self._lock = asyncio.Lock()
        for backend in self._configured.values():
            if backend.resolve == "each":
                discovery.watch(spec_of(backend))

    async def restore(self) -> None:
        """Add the stored backends of earlier runs, except those whose name the settings file uses."""
        async with self._lock:
            for stored in await self._store.list():
                if stored.name in self._configured or stored.name in self._stored:
                    continue
                try:
                    backend = self._read({**stored.fields, "name": stored.name})
                except InvalidRequest as error:
                    _log.error("The stored backend %s is not used: %s", stored.name, error)
                    continue
                self._stored[stored.name] = backend
                self._start(backend)
                if stored.draining:
                    self._drain(stored.name, draining=True)

    def names(self) -> Mapping[str, str]:
        """Return the source of each backend: `file` or `admin`."""
        return dict.fromkeys(self._stored, "admin") | dict.fromkeys(self._configured, "file")

    def fields(self, name: str) -> dict[str, Any]:
        """Return a backend's settings without its API key, its source, and the names of its entries in the pool.

        Raises:
            BackendNotFound: no backend has this name.
        """
        backend = self._configured.get(name) or self._stored.get(name)
        if backend is None:
            raise BackendNotFound(f"There is no backend {name[:100]!r}", param="name")
        shown = {**msgspec.to_builtins(backend), "has_api_key": backend.api_key is not None}
        del shown["api_key"]
        state = {"source": self.names()[name], "draining": name in self._draining, "members": self._entry_names(name)}
        return shown | state | {"lookup_error": self.discovery.errors.get(name)}

    async def add(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Add a backend and store it.

        Raises:
            InvalidRequest: a field is wrong; `param` names it.
            BackendExists: another stored backend has this name.
            ConfiguredBackend: a backend of the settings file has this name.
            BackendsUnavailable: the database is unavailable; nothing has changed.
        """
        backend = self._read(fields)
        async with self._lock:
            if backend.name in self._configured:
                raise ConfiguredBackend(f"{backend.name} is in the settings file", param="name")
            if backend.name in self._stored:
                raise BackendExists(f"There is a backend {backend.name!r} already", param="name")
            await self._save(backend, draining=False)
            self._stored[backend.name] = backend
            self._start(backend)
        _log.info("Backend %s was added", backend.name)
        return self.fields(backend.name)

    async def change(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Change a backend. Of a backend in the settings file, only `draining` can change.

        Another `url` removes the API key, unless the same change sets one.

        Raises:
            InvalidRequest: a field is wrong; `param` names it.
            BackendNotFound: no backend has this name.
            ConfiguredBackend: the settings file defines the backend.
            BackendsUnavailable: the database is unavailable; nothing has changed.
        """
        if "name" in changes:
            raise InvalidRequest("name: cannot be changed", param="name")
        async with self._lock:
            self.fields(name)  # raises BackendNotFound
            draining = changes.get("draining", name in self._draining)
            if not isinstance(draining, bool):
                raise InvalidRequest("draining: expected true or false", param="draining")
            others = {field: value for field, value in changes.items() if field != "draining"}
            if name not in self._configured:
                old = self._stored[name]
                if others.get("url", old.url) != old.url:  # or the key would be sent to whatever host is named now
                    others = {"api_key": None, **others}
                backend = self._read({**msgspec.to_builtins(old), **others})
                await self._save(backend, draining=draining)
                self._stored[name] = backend
                await self._replace(old, backend)
            elif others:
                raise ConfiguredBackend(f"{name} is in the settings file: change it there, and reload")
            self._drain(name, draining)
        _log.info("Backend %s was changed: %s", name, ", ".join(sorted(changes)))
        return self.fields(name)

    async def remove(self, name: str, *, force: bool) -> None:
        """Drain a backend and remove it when it is idle; with `force`, remove it at once.

        Raises:
            BackendNotFound: no backend has this name.
            ConfiguredBackend: the settings file defines the backend.
            BackendsUnavailable: the database is unavailable; nothing has changed.
        """
        async with self._lock:
            if name in self._configured:
                raise ConfiguredBackend(f"{name} is in the settings file: remove it there, and reload; or drain it")
            if name not in self._stored:
                self._remove_leaving(name, force=force)
                return
            try:
                await self._store.remove(name)
            except DATABASE_ERRORS as error:
                raise BackendsUnavailable("The database is unavailable; the backend was not removed") from error
            self._stop(self._stored.pop(name), force=force)
        _log.info("Backend %s was removed", name)

    async def configure(self, backends: Iterable[BackendSettings]) -> None:
        """Apply the backends of a changed settings file: add the new ones, change the others, drain the removed ones.

        Raises:
            ValueError: the gateway cannot connect to a backend; nothing has changed.
        """
        backends = list(backends)
        for backend in backends:
            self._connect(spec_of(backend))  # raises ValueError before anything changes
        async with self._lock:
            old, new = self._configured, {backend.name: backend for backend in backends}
            self._configured = new
            for name, backend in new.items():
                before = old.get(name) or self._stored.pop(name, None)
                if before is None:
                    self._start(backend)
                else:
                    await self._replace(before, backend)
            if removed := old.keys() - new.keys():  # only after the new backends have been scraped
                await asyncio.gather(*(self._scrape(backend) for name, backend in new.items() if name not in old))
            for name in removed:
                self._stop(old[name], force=False)

    async def _scrape(self, backend: BackendSettings) -> None:
        if backend.resolve == "each":
            await self.discovery.refresh(spec_of(backend))
        for name in self._entry_names(backend.name):
            await self.pool.scrape(self.pool.entries[name])

    def _remove_leaving(self, name: str, *, force: bool) -> None:
        """Remove entries that already drain because their backend was removed."""
        leaving = [entry_name for entry_name in self._entry_names(name) if self.pool.entries[entry_name].leaving]
        if not leaving:
            raise BackendNotFound(f"There is no backend {name[:100]!r}", param="name")
        for entry_name in leaving:
            self.pool.remove(entry_name, force=force)

    def _entry_names(self, name: str) -> list[str]:
        return [entry_name for entry_name in self.pool.entries if entry_name.partition("@")[0] == name]

    async def _save(self, backend: BackendSettings, *, draining: bool) -> None:
        fields = {k: v for k, v in msgspec.to_builtins(backend).items() if k != "name" and v is not None}
        try:
            await self._store.save(StoredBackend(backend.name, fields, draining))
        except DATABASE_ERRORS as error:
            raise BackendsUnavailable("The database is unavailable; nothing was changed") from error

    def _start(self, backend: BackendSettings) -> None:
        """Send requests to a backend from now on."""
        if backend.resolve == "each":
            self.discovery.watch(spec_of(backend))
        else:
            if backend.name in self.pool.entries:  # an earlier backend of this name that still drains
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
            self._stop(old, force=False)
            self._start(new)

    def _stop(self, backend: BackendSettings, *, force: bool) -> None:
        """Drain a backend and remove it from the pool; with `force`, at once."""
        self._draining.discard(backend.name)
        if backend.resolve == "each":
            self.discovery.forget(backend.name, force=force)
        elif backend.name in self.pool.entries:
            self.pool.remove(backend.name, force=force)

    def _read(self, fields: Mapping[str, Any]) -> BackendSettings:
        """Check the fields of a backend.

        Raises:
            InvalidRequest: a field is wrong; `param` names it.
        """
        try:
            backend = read_backend(fields)
            self._connect(spec_of(backend))
        except SettingsError as error:
            raise InvalidRequest(str(error), param=error.field) from error
        except ValueError as error:
            raise InvalidRequest("url: the gateway cannot connect to this URL", param="url") from error
        return backend

    def _drain(self, name: str, draining: bool) -> None:
        (self._draining.add if draining else self._draining.discard)(name)
        self.discovery.drain(name, draining)
        if name in self.pool.entries:
            self.pool.drain(name, draining)


def spec_of(backend: BackendSettings) -> BackendSpec:
    """Return the part of a backend's settings that adapters need."""
    return BackendSpec(
        name=backend.name,
        kind=backend.kind,
        url=backend.url.rstrip("/").removesuffix("/v1").rstrip("/"),
        api_key=backend.api_key,
        models=None if backend.models is None else tuple(backend.models),
        kv_tokens=backend.kv_tokens,
        max_concurrency=backend.max_concurrency,
        priority=backend.priority,
        first_byte_timeout_s=backend.first_byte_timeout_s,
        idle_timeout_s=backend.idle_timeout_s,
        total_timeout_s=backend.total_timeout_s,
    )
