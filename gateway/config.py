"""The settings: one frozen tree, and its reader.

`load` reads `magnus.toml` first and then the environment, which wins. `MAGNUS_<SECTION>_<KEY>` sets one value, for
example `MAGNUS_SERVER_PORT=9000`. The variables in `_JSON_VARIABLES` take lists and tables as JSON. A wrong key, type
or value raises a `SettingsError` that says which setting is wrong, where it was set, and what would be right.

`docs/settings.md` is generated from the docstrings and types of this module: `python -m tests.unit.docs.settings_page`.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from gateway.database_url import parse_database_url
from gateway.errors import DatabaseUrlError, SettingsError

BackendKind = Literal["vllm", "tgi", "openai", "static"]
PolicyName = Literal["fcfs", "sjf", "hrrn", "magnus"]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
PositiveSeconds = Annotated[float, Meta(gt=0)]
Priority = Annotated[int, Meta(ge=-10, le=10)]

_SECRETS = {"admin_key", "api_key", "url"}
"""Settings that are or may contain a password. They are left out of every `repr`, and so out of every log."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in _SECRETS)
        return f"{type(self).__name__}({', '.join(shown)})"


class CorsSettings(_Section, frozen=True):
    """Which web pages may read the gateway's answers (CORS). The routes under `/admin` are never among them."""

    allow_origins: list[str] = []
    """Origins of web pages, for example `["https://chat.example.com"]`, or `["*"]` for all. None turns CORS off."""
    allow_headers: list[str] = msgspec.field(default_factory=lambda: ["*"])
    """Request headers that a page may send. `["*"]` allows all."""
    allow_methods: list[str] = msgspec.field(default_factory=lambda: ["*"])
    """Methods that a page may use. `["*"]` allows all methods of a route."""
    max_age_s: Annotated[int, Meta(ge=0)] = 600
    """How long a browser may remember the answer to a preflight request."""


class ServerSettings(_Section, frozen=True):
    """Where the gateway listens, and the limits of one request."""

    host: str = "127.0.0.1"
    """Address to listen on. Any address other than loopback requires `auth.mode = "keys"`."""
    port: Port = 8080
    """TCP port to listen on. 0 takes a free port."""
    max_body_bytes: Positive = 32 * 1024 * 1024
    """Largest request body, including images. A larger body is answered with 413."""
    max_text_bytes: Positive = 8 * 1024 * 1024
    """Largest prompt text of a request. A longer text is answered with 413."""
    body_timeout_s: PositiveSeconds = 30.0
    """Longest pause of a client while it sends its body. After a longer pause the request is answered with 408."""
    keepalive_s: Annotated[float, Meta(ge=0)] = 15.0
    """A stream that waits for its first token gets a comment this often, so that balancers keep the connection. The
    first comment comes with status 200: later errors are events of the stream. 0 sends no comments."""
    shutdown_s: PositiveSeconds = 30.0
    """After a stop signal, waiting and running requests may take this long. Then they end with an error."""
    drain_delay_s: Annotated[float, Meta(ge=0)] = 5.0
    """After SIGTERM, `/health/ready` is 503 and the gateway still accepts connections this long, so that balancers can
    send requests elsewhere. It is part of `shutdown_s`. After Ctrl-C and in `magnus demo` there is no such time."""
    max_held_body_bytes: Positive = 128 * 1024 * 1024
    """Largest size of all request bodies together that the gateway holds, decompressed, while their requests wait or
    run. One application (or one address, in open mode) may hold half of it. Further bodies are answered with 503 and a
    `Retry-After` header."""
    cors: CorsSettings = CorsSettings()
    """Table of the settings of CORS, see below."""


class DatabaseSettings(_Section, frozen=True):
    """Where the gateway stores past requests, API keys, trained models and backends."""

    url: str = "embedded"
    """`embedded` starts a PostgreSQL server of its own. Otherwise `postgresql://user:password@host:5432/database`.
    Options of libpq such as `?sslmode=require` work. Reserved characters in a password are percent-encoded: `/` is
    `%2F`."""
    data_dir: str | None = None
    """Folder of the embedded database, the journal and the generated admin key. If not set, it is `magnus` in the
    folder of the variable `XDG_DATA_HOME`, which is `~/.local/share` by default."""
    retention_days: Positive = 90
    """Requests are deleted when they are older than this, and then end users and applications without requests."""
    store_prompts: bool = False
    """Whether to store the text of the last user message with each request."""


class AuthSettings(_Section, frozen=True):
    """Who may send requests."""

    mode: Literal["open", "keys"] = "open"
    """`open` needs no API key and listens on loopback only. `keys` requires a key of `magnus keys create`."""
    admin_key: str | None = None
    """Key of the routes under `/admin`, at least 16 characters. Without one, the gateway creates a key and stores it
    in `admin_key` in `database.data_dir`."""


class SchedulingSettings(_Section, frozen=True):
    """How requests wait for an engine."""

    policy: PolicyName = "hrrn"
    """Order of the queue: `fcfs` (first come, first served), `sjf` (shortest predicted job first), `hrrn` (highest
    response ratio next) or `magnus` (as `hrrn`, in batches of similar length)."""
    alpha: Annotated[float, Meta(gt=0, le=10)] = 1.0
    """Exponent in the response ratio (wait + service) / service^alpha of `hrrn` and `magnus`. Near 0 the order is that
    of `fcfs`. 0.5 to 0.6 delays the longest answers less. Above 1 the order comes close to `sjf`."""
    max_queue: Positive = 10_000
    """Most requests that may wait. Further requests are answered with 429 and a `Retry-After` header."""
    max_queue_tokens: Positive = 20_000_000
    """Most tokens that may wait: prompts and predicted answers together. Further requests are answered with 429."""
    priorities: dict[str, Priority] = {}
    """Priority of each application, a whole number from -10 to 10. Lower numbers go first. Applications that are not
    listed have priority 0. A request that has waited for half of `queue_timeout_s` competes with the highest
    priority."""
    queue_timeout_s: PositiveSeconds = 600.0
    """Longest wait in the queue. After that the request is answered with 504."""


class PredictionSettings(_Section, frozen=True):
    """How the gateway predicts the lengths of answers, and how it learns to."""

    embedder: Annotated[str, Meta(min_length=1)] = "static"
    """Model that turns prompts into features: `static`, `off`, or the name of a sentence-transformers model."""
    budget_ms: Annotated[float, Meta(gt=0)] = 20.0
    """Longest wait for the trained model. After that the prediction uses the history of past answers alone."""
    train_every_s: PositiveSeconds = 3600.0
    """Longest time between two trainings while requests arrive."""
    train_after_rows: Positive = 10_000
    """A training starts after this many new requests."""
    min_train_rows: Annotated[int, Meta(ge=250)] = 1000
    """The first training needs this many requests. Until then history alone predicts."""
    window_rows: Annotated[int, Meta(ge=250, le=1_000_000)] = 100_000
    """A training uses this many of the newest requests. It must be at least `min_train_rows`."""
    train_threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    """CPU threads of the training process, which runs at the lowest priority."""


class UpstreamSettings(_Section, frozen=True):
    """How long the gateway waits for an engine."""

    connect_timeout_s: PositiveSeconds = 5.0
    """Longest wait for a connection to the engine. After that another backend is tried."""
    first_byte_timeout_s: PositiveSeconds = 600.0
    """Longest wait for the first byte of a streamed answer, or for a whole answer that is not streamed. After that
    another backend is tried."""
    idle_timeout_s: PositiveSeconds = 120.0
    """Longest pause within a stream. After a longer pause the stream ends with an error."""
    scrape_interval_s: PositiveSeconds = 1.0
    """Time between two scrapes of an engine's metrics."""
    scrape_timeout_s: PositiveSeconds = 5.0
    """Longest wait for an engine's metrics. A backend whose scrapes fail twice in a row gets no new requests."""


class ModelDefaults(_Section, frozen=True):
    """What the gateway adds to requests for a model that do not say it themselves."""

    max_tokens: Positive | None = None
    """Longest answer in tokens."""
    max_tokens_quantile: Annotated[float, Meta(ge=0.5, lt=1)] | None = None
    """Longest answer as a quantile of the request's predicted length, rounded up to a multiple of 64. It cuts off
    longer answers. `max_tokens` wins if both are set."""


class ModelSettings(_Section, frozen=True):
    """Other names of models, and default lengths of their answers."""

    aliases: dict[str, str] = {}
    """Table of other names and the models that they stand for, for example `"gpt-4o-mini" = "llama-3-8b"`. A request
    for an alias is scheduled and sent with the model's own name. `/v1/models` lists both."""
    defaults: dict[str, ModelDefaults] = {}
    """Table of models. Each entry has `max_tokens` or `max_tokens_quantile`, for requests that set no maximum."""


class LogSettings(_Section, frozen=True):
    """What the gateway writes to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lines below this level are not written."""
    format: Literal["auto", "json", "text"] = "auto"
    """`auto` writes text to a terminal and JSON otherwise."""


class BackendSettings(_Section, frozen=True):
    """One engine. Each engine has its own `[[backends]]` entry."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Unique name in the statistics, the metrics and the `x-magnus-backend` header: 1 to 64 letters, digits, `.`, `_`
    or `-`."""
    kind: BackendKind
    """What the engine is: `vllm`, `tgi`, `openai` (any engine with OpenAI's API) or `static` (one padded batch at a
    time)."""
    url: str
    """Base URL of the engine. A `/v1` at its end is removed."""
    api_key: str | None = None
    """API key that the gateway sends to the engine as a bearer token."""
    models: list[str] | None = None
    """Models that the engine serves. If not set, the gateway asks the engine."""
    kv_tokens: Positive | None = None
    """Size of the engine's KV memory in tokens. If not set, the gateway asks the engine."""
    max_concurrency: Positive | None = None
    """Most requests that the engine gets at the same time. Further requests wait in the queue."""
    resolve: Literal["once", "each"] = "once"
    """`each` creates one backend for every IP address of the host in `url` (`gpu@10.0.0.3`), and looks the addresses up
    again every 30 s. It needs an `http` URL."""
    priority: bool = False
    """Whether the engine orders its own queue by priority (`vllm serve --scheduling-policy priority`). The gateway then
    sends a priority with each request."""
    first_byte_timeout_s: PositiveSeconds | None = None
    """Overrides `upstream.first_byte_timeout_s` for this backend."""
    idle_timeout_s: PositiveSeconds | None = None
    """Overrides `upstream.idle_timeout_s` for this backend."""
    total_timeout_s: PositiveSeconds | None = None
    """Longest time from sending a request to the last byte of its answer, however slowly the client reads. After that
    the request fails. If the client was the slow part, its error is `client_too_slow`, and the engine is not blamed."""


class Settings(_Section, frozen=True):
    """All settings."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    auth: AuthSettings = AuthSettings()
    scheduling: SchedulingSettings = SchedulingSettings()
    prediction: PredictionSettings = PredictionSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    models: ModelSettings = ModelSettings()
    log: LogSettings = LogSettings()
    backends: list[BackendSettings] = []


_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_NOT_SETTINGS = {"MAGNUS_CONFIG", "MAGNUS_CACHE"}
_JSON_VARIABLES = {
    "MAGNUS_BACKENDS",
    "MAGNUS_SCHEDULING_PRIORITIES",
    "MAGNUS_MODELS_ALIASES",
    "MAGNUS_MODELS_DEFAULTS",
    "MAGNUS_SERVER_CORS",
}
_KUBERNETES = re.compile(
    r"MAGNUS_(?:\w+_)?(?:SERVICE_HOST=.*|SERVICE_PORT(?:_\w+)?=\d+|PORT=(?:tcp|udp|sctp)://.*"
    r"|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?=.*|NAME=/.+/.+|ENV_\w+=.*)"
)
"""Variables that Kubernetes puts into every pod of a namespace that has a service named `magnus` or `magnus-…`, and
Docker into a container that is linked to one with such a name."""

_T = TypeVar("_T")


def load(path: Path | None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Args:
        path: the file; None for the defaults and the environment alone.
        environ: the environment. Only `MAGNUS_*` variables count.

    Raises:
        SettingsError: the file cannot be read or parsed, or a key, type or value is wrong.
    """
    tree = _read_toml(path) if path else {}
    settings = _convert(tree, Settings, source=f"{path}: ", strict=True)
    for name, section, key, value in _overrides(environ):
        tree = {**tree, section: value if key is None else {**tree.get(section, {}), key: value}}
        settings = _convert(tree, Settings, source=f"{name}: ", strict=False)
    _check_combinations(settings)
    return settings


def read_backend(fields: Mapping[str, Any]) -> BackendSettings:
    """Read the fields of one `[[backends]]` entry.

    Raises:
        SettingsError: a key, type or value is wrong; `field` names it.
    """
    backend = _convert(fields, BackendSettings, source="", strict=True)
    _check_backend(backend, "")
    return backend


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of files that can be made again: `MAGNUS_CACHE`, or `magnus` in the user's cache folder."""
    if chosen := environ.get("MAGNUS_CACHE"):
        return Path(chosen)
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magnus"


def data_dir(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of `database.data_dir`, with `~` resolved, or `magnus` in the user's data folder."""
    if settings.database.data_dir is not None:
        return Path(settings.database.data_dir).expanduser()
    data_home = environ.get("XDG_DATA_HOME", "")
    return (Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share") / "magnus"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _overrides(environ: Mapping[str, str]) -> list[tuple[str, str, str | None, Any]]:
    """Return (variable, section, key, value) of each `MAGNUS_*` variable; `key` is None for the list of backends."""
    overrides: list[tuple[str, str, str | None, Any]] = []
    for name in sorted(environ):
        if not name.startswith("MAGNUS_") or name in _NOT_SETTINGS or _KUBERNETES.fullmatch(f"{name}={environ[name]}"):
            continue
        section, _, key = name.removeprefix("MAGNUS_").lower().partition("_")
        value = _read_json(name, environ[name]) if name in _JSON_VARIABLES else environ[name]
        if name == "MAGNUS_BACKENDS":
            overrides.append((name, section, None, value))
        elif key and section in Settings.__struct_fields__ and section != "backends":
            overrides.append((name, section, key, value))
        else:
            raise SettingsError(f"{name}: no such setting; expected MAGNUS_<SECTION>_<KEY>, as in MAGNUS_SERVER_PORT")
    return overrides


def _read_json(name: str, text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{name}: expected JSON: {error}") from error


def _convert(tree: Mapping[str, Any], kind: type[_T], *, source: str, strict: bool) -> _T:
    """Convert a tree to settings. Environment variables are text, so without `strict` the text "80" is a number too."""
    try:
        return msgspec.convert(tree, kind, strict=strict)
    except msgspec.ValidationError as error:
        path, problem = _explain(str(error), kind)
        raise SettingsError(f"{source}{path}: {problem}" if path else f"{source}{problem}", path or None) from error


_PATH = re.compile(r" - at `(key in )?\$\.?(?P<path>.*)`$")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>[^`]+)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]+)`")
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "array": "a list",
    "object": "a table",
}


def _explain(message: str, kind: type) -> tuple[str, str]:
    """Return the setting that a validation error is about, and what is wrong with it."""
    path = match["path"] if (match := _PATH.search(message)) else ""
    message = _PATH.sub("", message)
    if match := _UNKNOWN.fullmatch(message):
        known = _keys_at(kind, path)
        close = get_close_matches(match["field"], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        return f"{path}.{match['field']}".strip("."), f"no such setting; {hint}"
    if match := _MISSING.fullmatch(message):
        return f"{path}.{match['field']}".strip("."), "missing, but required"
    if message.startswith("Invalid enum value"):
        expected = ", ".join(map(str, get_args(_type_at(kind, path))))
        return path, f"{message.removeprefix('Invalid enum value ')} is not one of {expected}"
    if "matching regex" in message:
        return path, "expected 1 to 64 letters, digits, '.', '_' or '-'"
    return path, _in_plain_words(message)


def _in_plain_words(message: str) -> str:
    """Name TOML's types as people do.

    >>> _in_plain_words("Expected `int`, got `str`")
    'expected a whole number, got text'
    """
    words = re.sub(r"`(\w+)(?: \| null)?`?", lambda match: _TYPES.get(match[1], match[1]), message).replace("`", "")
    return words[:1].lower() + words[1:]


def _type_at(kind: Any, path: str) -> Any:  # noqa: ANN401 - a type annotation has no type of its own
    """Return the annotation of the setting at a path such as `backends[0].kind`."""
    for part in re.sub(r"\[[^\]]*\]", ".[]", path).split("."):
        if part == "[]":
            kind = get_args(kind)[-1]
        elif part:
            kind = get_type_hints(kind)[part]
    return kind


def _keys_at(kind: Any, path: str) -> list[str]:  # noqa: ANN401 - as above
    return list(_type_at(kind, path).__struct_fields__)


def _check_combinations(settings: Settings) -> None:
    """Check what the type of a single setting does not show."""
    if settings.auth.mode == "open" and settings.server.host not in _LOOPBACK:
        _refuse("server.host", f'{settings.server.host} is not a loopback address, which requires auth.mode = "keys"')
    if settings.auth.admin_key is not None and len(settings.auth.admin_key) < 16:
        _refuse("auth.admin_key", "too short; expected at least 16 characters")
    if settings.prediction.window_rows < settings.prediction.min_train_rows:
        _refuse("prediction.window_rows", "smaller than prediction.min_train_rows; expected at least as many rows")
    names = [backend.name for backend in settings.backends]
    if twice := {name for name in names if names.count(name) > 1}:
        _refuse("backends", f"name {min(twice)!r} is used twice; expected a different name for each backend")
    for i, backend in enumerate(settings.backends):
        _check_backend(backend, f"backends[{i}].")
    for alias, model in settings.models.aliases.items():
        if model in settings.models.aliases:
            _refuse("models.aliases", f"{alias!r} stands for {model!r}, an alias too; expected the name of a model")
    database = settings.database.url
    if database != "embedded":
        try:
            parse_database_url(database)
        except DatabaseUrlError as error:
            _refuse("database.url", str(error))


def _check_backend(backend: BackendSettings, where: str) -> None:
    """Check what the types do not show. No message repeats a URL or a key, because they may be secret."""
    if not _is_base_url(backend.url):
        _refuse(f"{where}url", "not a base URL; expected http://host:port or https://host:port")
    url = urlsplit(backend.url)
    if url.username or url.password:
        _refuse(f"{where}url", "contains a user name or a password; expected none, and the key in api_key")
    if backend.resolve == "each" and url.scheme != "http":
        _refuse(f"{where}resolve", '"each" requires an http URL, because certificates name hosts and not IP addresses')
    if backend.api_key is not None and not (backend.api_key.isascii() and backend.api_key.isprintable()):
        _refuse(f"{where}api_key", "contains characters that an HTTP header cannot carry; expected printable ASCII")


def _refuse(field: str, why: str) -> NoReturn:
    raise SettingsError(f"{field}: {why}", field)


def _is_base_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        has_address = bool(url.hostname) and url.port != 0 and text.isprintable() and " " not in text
        return url.scheme in {"http", "https"} and has_address and not (url.query or url.fragment)
    except ValueError:  # brackets that do not match, a port beyond 65535
        return False
