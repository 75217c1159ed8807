"""The settings: one frozen tree, read once from `magnus.toml` and from `MAGNUS_*` variables, which win.

`MAGNUS_<SECTION>_<KEY>` sets one value (`MAGNUS_SERVER_PORT=9000`); what is a list or a table is given as JSON
(`MAGNUS_BACKENDS`, `MAGNUS_SCHEDULING_PRIORITIES`, `MAGNUS_MODELS_ALIASES`, `MAGNUS_MODELS_DEFAULTS`). A wrong key,
type or value is a `SettingsError` that names it.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec

from gateway.sections import (
    Auth,
    BackendSettings,
    Database,
    Log,
    ModelDefaults,
    Models,
    Prediction,
    Scheduling,
    Server,
    Settings,
    Upstream,
)

__all__ = [
    "Auth",
    "BackendSettings",
    "Database",
    "Log",
    "ModelDefaults",
    "Models",
    "Prediction",
    "Scheduling",
    "Server",
    "Settings",
    "SettingsError",
    "Upstream",
    "cache_dir",
    "load",
    "read_backend",
]

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


class SettingsError(ValueError):
    """A setting that is wrong; the message is one line that names it and where it was set.

    `field` is the setting's path, where the fault is in one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Args:
        path: the file; None for defaults and environment alone.
        environ: the environment; only `MAGNUS_*` is looked at, but for `MAGNUS_CONFIG` and `MAGNUS_CACHE`.

    Raises:
        SettingsError: the file cannot be read or parsed, or a key, type or value is wrong.
    """
    tree = _read_toml(path) if path else {}
    settings = _check(tree, source=str(path), strict=True)
    for name, section, key, value in _overrides(environ):
        tree = {**tree, section: value if key is None else {**tree.get(section, {}), key: value}}
        settings = _check(tree, source=name, strict=False)
    _check_whole(settings)
    return settings


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for what can be made again: `MAGNUS_CACHE`, else `magnus` in the user's cache."""
    if chosen := environ.get("MAGNUS_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magnus"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


_NOT_SETTINGS = {"MAGNUS_CONFIG", "MAGNUS_CACHE"}
_JSON = {"MAGNUS_BACKENDS", "MAGNUS_SCHEDULING_PRIORITIES", "MAGNUS_MODELS_ALIASES", "MAGNUS_MODELS_DEFAULTS"}


def _overrides(environ: Mapping[str, str]) -> list[tuple[str, str, str | None, Any]]:
    """(variable, section, key or None for the list, value) of each `MAGNUS_*` variable."""
    overrides: list[tuple[str, str, str | None, Any]] = []
    for name in sorted(environ):
        if not name.startswith("MAGNUS_") or name in _NOT_SETTINGS:
            continue
        section, _, key = name.removeprefix("MAGNUS_").lower().partition("_")
        value = _read_json(name, environ[name]) if name in _JSON else environ[name]
        if name == "MAGNUS_BACKENDS":
            overrides.append((name, section, None, value))
        elif key and section in Settings.__struct_fields__ and section != "backends":
            overrides.append((name, section, key, value))
        else:
            raise SettingsError(f"{name}: no such setting")
    return overrides


def _read_json(name: str, text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{name}: {error}") from error


_PATH = re.compile(r" - at `(key in )?\$\.?(?P<path>.*)`$")
_NAMED = re.compile(r"(?:unknown|required) field `(?P<field>[^`]+)`")
_T = TypeVar("_T")


def read_backend(fields: Mapping[str, Any]) -> BackendSettings:
    """Read one entry of `[[backends]]`, given by itself.

    Raises:
        SettingsError: a key, type or value is wrong; `field` names it.
    """
    backend = _convert(fields, BackendSettings, source="", strict=True)
    _check_backend(backend, "")
    return backend


def _check(tree: dict[str, Any], *, source: str, strict: bool) -> Settings:
    """Convert the tree. Environment variables are text: unless `strict`, text that reads as a number is one."""
    return _convert(tree, Settings, source=f"{source}: ", strict=strict)


def _convert(tree: Mapping[str, Any], kind: type[_T], *, source: str, strict: bool) -> _T:
    try:
        return msgspec.convert(tree, kind, strict=strict)
    except msgspec.ValidationError as error:
        text = str(error)
        path = match["path"] if (match := _PATH.search(text)) else ""
        where = f"{source}{path}: " if path else source
        named = f".{match['field']}" if (match := _NAMED.search(text)) else ""
        raise SettingsError(where + _PATH.sub("", text), f"{path}{named}".strip(".") or None) from error


def _check_whole(settings: Settings) -> None:
    """What no single value shows."""
    if settings.auth.mode == "open" and settings.server.host not in _LOOPBACK:
        _refuse("server.host", f'{settings.server.host} is beyond loopback, which needs auth.mode = "keys"')
    if settings.auth.admin_key is not None and len(settings.auth.admin_key) < 16:
        _refuse("auth.admin_key", "at least 16 characters")
    if settings.prediction.window_rows < settings.prediction.min_train_rows:
        _refuse("prediction.window_rows", "at least prediction.min_train_rows")
    names = [backend.name for backend in settings.backends]
    if twice := {name for name in names if names.count(name) > 1}:
        _refuse("backends", f"name {min(twice)!r} is used twice")
    for i, backend in enumerate(settings.backends):
        _check_backend(backend, f"backends[{i}].")
    for alias, model in settings.models.aliases.items():
        if model in settings.models.aliases:
            _refuse("models.aliases", f"{alias!r} stands for {model!r}, which is an alias itself")
    database = settings.database.url
    if database != "embedded" and not database.startswith("postgresql+asyncpg://"):
        _refuse("database.url", '"embedded" or "postgresql+asyncpg://…" expected')


def _check_backend(backend: BackendSettings, where: str) -> None:
    """Check what its types do not show; no message repeats a URL or a key, which may be secret."""
    if not _is_base_url(backend.url):
        _refuse(f"{where}url", "not an http(s) base URL")
    url = urlsplit(backend.url)
    if url.username or url.password:
        _refuse(f"{where}url", "holds a name or a password; a key belongs in api_key")
    if backend.resolve == "each" and url.scheme != "http":
        _refuse(f"{where}resolve", '"each" needs an http URL: a certificate is made out to a name, not to addresses')
    if backend.api_key is not None and not (backend.api_key.isascii() and backend.api_key.isprintable()):
        _refuse(f"{where}api_key", "has characters that a header cannot carry")


def _refuse(field: str, why: str) -> NoReturn:
    raise SettingsError(f"{field}: {why}", field)


def _is_base_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        has_address = bool(url.hostname) and url.port != 0 and text.isprintable() and " " not in text
        return url.scheme in {"http", "https"} and has_address and not (url.query or url.fragment)
    except ValueError:  # brackets that do not match, a port beyond 65535
        return False
