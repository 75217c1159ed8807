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
from typing import Annotated, Any, Literal, NoReturn, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gateway.errors import SettingsError

BackendKind = Literal["vllm", "tgi", "openai", "static"]
PolicyName = Literal["fcfs", "sjf", "hrrn", "magnus"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Priority = Annotated[int, Meta(ge=-10, le=10)]

_SECRETS = {"admin_key", "api_key", "url"}
"""Settings that are, or may hold, a password; they are in no repr, and so in no log."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in _SECRETS)
        return f"{type(self).__name__}({', '.join(shown)})"


class Server(_Section, frozen=True):
    """Where the gateway listens and how much it takes."""

    host: str = "127.0.0.1"
    """Address to listen on; beyond loopback only with `auth.mode = "keys"`."""
    port: Port = 8080
    """Port to listen on; 0 takes a free one."""
    max_body_bytes: Positive = 32 * 1024 * 1024
    """Largest request body: room for images of up to 20 MB."""
    max_text_bytes: Positive = 8 * 1024 * 1024
    """Largest prompt text in a request."""
    body_timeout_s: PositiveSeconds = 30.0
    """Longest silence of a client that is sending its body."""
    shutdown_s: PositiveSeconds = 30.0
    """How long running answers may go on after a stop was asked for."""


class Database(_Section, frozen=True):
    """Where history is kept."""

    url: str = "embedded"
    """`embedded` starts a PostgreSQL of its own; else `postgresql+asyncpg://user:password@host/database`."""
    data_dir: str = "~/.local/share/magnus"
    """Where the embedded database, the journal and generated keys are kept."""
    retention_days: Positive = 90
    """Requests older than this are forgotten."""
    store_prompts: bool = False
    """Keep the last user message's text with each request."""


class Auth(_Section, frozen=True):
    """Who may call."""

    mode: Literal["open", "keys"] = "open"
    """`open` asks nobody for a key and binds loopback only; `keys` takes keys made by `magnus keys create`."""
    admin_key: str | None = None
    """Key for `/admin`, at least 16 characters; without one, one is made and kept in `database.data_dir`/admin_key."""


class Scheduling(_Section, frozen=True):
    """How requests wait."""

    policy: PolicyName = "hrrn"
    """Order of the queue."""
    alpha: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """Exponent of the service time in the response ratio: under 1 spares the longest answers, over 1 the mean."""
    max_queue: Positive = 10_000
    """Requests that may wait; the next one is answered 429 with a Retry-After."""
    max_queue_tokens: Positive = 20_000_000
    """Tokens of prompts and predicted answers that may wait."""
    priorities: dict[str, Priority] = {}
    """By application, lower goes first; 0 where none is given."""
    queue_timeout_s: PositiveSeconds = 600.0
    """Longest wait; then 504."""


class Prediction(_Section, frozen=True):
    """How answers' lengths are predicted, and how that is learned."""

    embedder: Annotated[str, Meta(min_length=1)] = "static"
    """What reads the texts: `static`, `off`, or the name of a sentence-transformers model."""
    budget_ms: Annotated[float, Meta(gt=0)] = 20.0
    """Longest that a request waits for its prediction; then history alone answers."""
    train_every_s: PositiveSeconds = 3600.0
    """A new model is trained at the latest after this time, if there were requests."""
    train_after_rows: Positive = 10_000
    """A new model is trained after so many new requests."""
    min_train_rows: Annotated[int, Meta(ge=250)] = 1000
    """Requests before the first model is trained."""
    window_rows: Annotated[int, Meta(ge=250, le=1_000_000)] = 100_000
    """Newest requests that a model is trained on."""
    train_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Threads of the training process, which runs at the lowest priority."""


class Upstream(_Section, frozen=True):
    """How long an engine may take."""

    connect_timeout_s: PositiveSeconds = 5.0
    """To take a connection."""
    first_byte_timeout_s: PositiveSeconds = 600.0
    """From sending the request to the first byte of the answer; the whole answer, where it is not a stream."""
    idle_timeout_s: PositiveSeconds = 120.0
    """Longest silence within a stream."""
    scrape_interval_s: PositiveSeconds = 1.0
    """How often each engine is asked for its load."""
    scrape_timeout_s: PositiveSeconds = 5.0
    """How long an engine may take to tell."""


class ModelDefaults(_Section, frozen=True):
    """What requests for a model get that do not say it themselves."""

    max_tokens: Positive | None = None
    """Longest answer."""
    max_tokens_quantile: Annotated[float, Meta(ge=0.5, lt=1)] | None = None
    """Where there is no `max_tokens`: the quantile of the predicted length, rounded up; it cuts the answers beyond."""


class Models(_Section, frozen=True):
    """Models by other names, and what is assumed of requests for them."""

    aliases: dict[str, str] = {}
    """Other names of models: `"gpt-4o-mini" = "llama-3-8b"`."""
    defaults: dict[str, ModelDefaults] = {}
    """By model: `max_tokens`, or `max_tokens_quantile`, for requests without one."""


class Log(_Section, frozen=True):
    """What is written to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is written."""
    format: Literal["auto", "json", "text"] = "auto"
    """`auto` is text on a terminal, JSON elsewhere."""


class BackendSettings(_Section, frozen=True):
    """One engine."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Its name in stats, metrics and the `x-magnus-backend` header."""
    kind: BackendKind
    """What it is: `vllm`, `tgi`, `openai` (anything OpenAI-style) or `static` (one padded batch at a time)."""
    url: str
    """Base URL, without `/v1`."""
    api_key: str | None = None
    """Sent to the engine as a bearer token."""
    models: list[str] | None = None
    """Models that it serves; the engine is asked where this is not set."""
    kv_tokens: Positive | None = None
    """KV memory in tokens; the engine is asked where this is not set."""
    max_concurrency: Positive | None = None
    """Most requests that it gets at once."""
    resolve: Literal["once", "each"] = "once"
    """`each` makes a backend of every address that the name in `url` has, and asks for them again and again."""
    priority: bool = False
    """It orders its own queue by the priority of a request (vLLM's `--scheduling-policy priority`)."""
    first_byte_timeout_s: PositiveSeconds | None = None
    """As `upstream.first_byte_timeout_s`, for this backend."""
    idle_timeout_s: PositiveSeconds | None = None
    """As `upstream.idle_timeout_s`, for this backend."""
    total_timeout_s: PositiveSeconds | None = None
    """From sending a request to its last byte; without one there is no such bound."""


class Settings(_Section, frozen=True):
    """The whole tree."""

    server: Server = Server()
    database: Database = Database()
    auth: Auth = Auth()
    scheduling: Scheduling = Scheduling()
    prediction: Prediction = Prediction()
    upstream: Upstream = Upstream()
    models: Models = Models()
    log: Log = Log()
    backends: list[BackendSettings] = []


_LOOPBACK = {"127.0.0.1", "::1", "localhost"}


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


def data_dir(settings: Settings) -> Path:
    """Return the folder of `database.data_dir`, with `~` resolved."""
    return Path(settings.database.data_dir).expanduser()


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
