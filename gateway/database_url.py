"""Reads the URL of a database as libpq does: `postgresql://user:password@host:port/database?option=value`.

Clouds hand out such URLs. Each option either works or is an error that names it. No error repeats the URL, because it
contains a password.
"""

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from gateway.errors import DatabaseUrlError

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
EXAMPLE = "postgresql://user:password@host:5432/database"

_SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}
_CHOICES = {
    "sslmode": _SSL_MODES,
    "sslnegotiation": {"postgres", "direct"},
    "target_session_attrs": {"any", "primary", "standby", "read-write", "read-only", "prefer-standby"},
    "ssl_min_protocol_version": {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"},
    "ssl_max_protocol_version": {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"},
    "channel_binding": {"disable", "prefer"},
    "gssencmode": {"disable", "prefer"},
    "client_encoding": {"utf8", "UTF8", "utf-8", "UTF-8", "auto"},
}
"""Options with a fixed set of values. Those of the last three are what the gateway does without the option."""

_DEFAULTS = {"channel_binding", "gssencmode", "client_encoding"}
_NUMBERS = {"connect_timeout", "command_timeout", "statement_cache_size", "prepared_statement_cache_size"}
_ADDRESS = {"host", "port", "user", "password", "dbname"}
_DRIVER = {"passfile", "krbsrvname", "gsslib"}
_TLS_FILES = {"sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword"}
_SERVER_SETTINGS = {"application_name", "options"}
_ALIASES = {"ssl": "sslmode", "database": "dbname", "fallback_application_name": "application_name"}
OPTIONS = frozenset({*_CHOICES, *_NUMBERS, *_ADDRESS, *_DRIVER, *_TLS_FILES, *_SERVER_SETTINGS, *_ALIASES})
"""The options that a URL may contain."""


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A parsed URL.

    Attributes:
        address: arguments of `asyncpg.connect`: host, port, user, password and database, as far as they are given.
        tls: libpq's options of TLS and of the kind of server, which the driver reads from a URL.
        server_settings: settings of the session on the server.
        numbers: time limits in seconds and sizes of caches.
        driver: other arguments of `asyncpg.connect`.
    """

    address: dict[str, Any] = field(default_factory=dict, repr=False)
    tls: dict[str, str] = field(default_factory=dict, repr=False)
    server_settings: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    driver: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def tls_dsn(self) -> str:
        """Return a URL that contains only the options of `tls`."""
        return f"postgresql://?{urlencode(self.tls)}" if self.tls else "postgresql://"


def parse_database_url(url: str) -> DatabaseUrl:
    """Parse the URL of a database.

    Raises:
        DatabaseUrlError: the scheme, a part or an option is wrong.

    >>> parse_database_url("postgres://u:p%40ss@db:6432/x?sslmode=require").address
    {'host': ['db'], 'port': [6432], 'user': 'u', 'password': 'p@ss', 'database': 'x'}
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise DatabaseUrlError(f'expected "embedded" or "{EXAMPLE}"')
    if any(character.isspace() or not character.isprintable() for character in url):
        raise DatabaseUrlError("contains a space or a control character; write a space as %20")
    if "#" in rest:
        raise DatabaseUrlError("contains #; in a user name or a password write # as %23")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    if "@" in path or "/" in path or ("@" in query and "@" not in authority):
        raise DatabaseUrlError(
            "contains a reserved character; in a user name, a password or a database write / as %2F, ? as %3F, @ as %40"
        )
    options = _options(query)
    address = _address(authority, unquote(path), options)
    server_settings = {name: options[name] for name in sorted(_SERVER_SETTINGS & options.keys())}
    return DatabaseUrl(
        address=address,
        tls={
            name: value
            for name, value in options.items()
            if name in _TLS_FILES or (name in _CHOICES and name not in _DEFAULTS)
        },
        server_settings=server_settings,
        numbers={name: int(options[name]) for name in _NUMBERS & options.keys()},
        driver={name: options[name] for name in _DRIVER & options.keys()},
    )


def _options(query: str) -> dict[str, str]:
    """Return the options; a full name wins over its alias."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        raise DatabaseUrlError("the part after ? must consist of option=value pairs, joined by &") from None
    options: dict[str, str] = {}
    for given, value in pairs:
        if given not in OPTIONS:
            name = given if re.fullmatch(r"\w{1,40}", given) else "after ?"
            raise DatabaseUrlError(f"the option {name} is not supported; expected one of {', '.join(sorted(OPTIONS))}")
        _check(given, value)
        if given in _ALIASES:
            options.setdefault(_ALIASES[given], value)
        else:
            options[given] = value
    return options


def _check(given: str, value: str) -> None:
    name = _ALIASES.get(given, given)
    if name in _CHOICES and value not in _CHOICES[name]:
        expected = ", ".join(sorted(_CHOICES[name]))
        raise DatabaseUrlError(f"the option {given} has a value that is not supported; expected one of {expected}")
    if name in _NUMBERS and not re.fullmatch(r"[0-9]{1,6}", value):
        raise DatabaseUrlError(f"the option {given} must be a whole number")


def _address(authority: str, database: str, options: dict[str, str]) -> dict[str, Any]:
    credentials, _, location = authority.rpartition("@")
    user, has_password, password = credentials.partition(":")
    hosts, ports = _hosts(location)
    if "host" in options and not hosts:
        hosts = options["host"].split(",")
    if "port" in options and not any(ports):
        ports = [_port(port) for port in options["port"].split(",")]
    address: dict[str, Any] = {}
    if hosts:
        address["host"] = hosts
    if any(ports):
        if len(ports) not in {1, max(1, len(hosts))}:
            raise DatabaseUrlError("the option port must be one number, or one for each host")
        every = ports * len(hosts) if len(ports) == 1 and hosts else ports
        address["port"] = [port or 5432 for port in every]
    values = {
        "user": unquote(user) or options.get("user"),
        "password": unquote(password) if has_password else options.get("password"),
        "database": database or options.get("dbname"),
    }
    return address | {name: value for name, value in values.items() if value}


def _hosts(location: str) -> tuple[list[str], list[int | None]]:
    """Split `host:port,[::1]:port`. A host may be a folder with a socket, written as `%2Frun%2Fpostgresql`."""
    hosts: list[str] = []
    ports: list[int | None] = []
    for part in location.split(",") if location else []:
        match = re.fullmatch(r"(?:\[(?P<ip>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\[\]]*))(?::(?P<port>.*))?", part)
        if match is None:
            raise DatabaseUrlError("the host is not valid; expected host:port, and IPv6 addresses in [brackets]")
        if host := unquote(match["ip"] or match["host"] or ""):
            hosts.append(host)
        ports.append(_port(match["port"]) if match["port"] else None)
    return hosts, ports


def _port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 0 < int(text) < 65536:
        raise DatabaseUrlError(
            "the port must be a number from 1 to 65535; in a user name or a password write : as %3A, / as %2F, ? as %3F"
        )
    return int(text)
