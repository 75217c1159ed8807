"""The processes that benchmarks start: engines, other proxies, and a gateway with history and a trained model."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import msgspec

START_S = 120.0
STOP_S = 20.0
POLL_S = 0.1
LOG_TAIL_CHARS = 2000
ADMIN_KEY = "admin-key-of-this-benchmark"
SOURCES = Path(__file__).parents[1]

Process = subprocess.Popen[bytes]

_ANNOUNCED = re.compile(r"Magnus answers at (http://\S+)/v1")


class StartError(RuntimeError):
    """A process did not start, or a command failed. The message contains the end of its output."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A checkout of this project.

    Attributes:
        command: starts `magnus` from it.
        python_path: value of `PYTHONPATH`, None to leave the variable out.
    """

    command: tuple[str, ...]
    python_path: str | None


def _python_path() -> str:
    return os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))


THIS_CHECKOUT = Checkout((sys.executable, "-m", "gateway.cli"), _python_path())


def checkout_at(path: Path) -> Checkout:
    """Return another checkout, which has an environment of its own in `.venv`.

    Raises:
        StartError: it has none.
    """
    magnus = path.resolve() / ".venv" / "bin" / "magnus"
    if not magnus.exists():
        raise StartError(f"{path} has no .venv/bin/magnus: run `make setup` there")
    return Checkout((str(magnus),), None)


def environ(own: Mapping[str, str], python_path: str | None = THIS_CHECKOUT.python_path) -> dict[str, str]:
    """Return this process's environment with `own` added and without the caller's settings of the gateway.

    `MAGNUS_CACHE`, the folder of the embedder, stays.
    """
    foreign = {name for name in os.environ if name.startswith("MAGNUS_") and name != "MAGNUS_CACHE"} | {"PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    return kept | ({"PYTHONPATH": python_path} if python_path else {}) | dict(own)


@dataclass(frozen=True, slots=True)
class ServedGateway:
    """A gateway that answers, and the id of its process."""

    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class WarmGateway:
    """A gateway with history in the embedded Postgres, a trained model and the static embedder.

    Args:
        folder: for its data directory `data` and its logs.
        engine_url: URL of its one backend.
        settings: environment variables of the gateway, beside those that all benchmarks share.
        checkout: the checkout whose gateway runs.
    """

    folder: Path
    engine_url: str
    settings: Mapping[str, str] = field(default_factory=dict)
    checkout: Checkout = THIS_CHECKOUT

    def warm_up(self, past: Iterable[Mapping[str, object]]) -> None:
        """Import rows of past requests and train a model on them.

        Raises:
            StartError: a command failed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = self.folder / "past.jsonl"
        rows.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in past))
        self.run("history", "import", str(rows))
        self.run("train")

    def run(self, *arguments: str) -> str:
        """Run a `magnus` command on the gateway's data and return its output.

        Raises:
            StartError: the command failed.
        """
        done = subprocess.run(
            [*self.checkout.command, *arguments],
            env=self._environ({}),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StartError(f"magnus {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    @contextmanager
    def copied(self, name: str) -> Iterator["WarmGateway"]:
        """Yield a copy with the same history and model; remove it when the block ends."""
        copy = replace(self, folder=self.folder / name)
        copy.folder.mkdir()
        # `cp -a` keeps owners and permissions: for root, Postgres runs as another user.
        subprocess.run(["cp", "-a", str(self.folder / "data"), str(copy.folder)], check=True)
        try:
            yield copy
        finally:
            shutil.rmtree(copy.folder, ignore_errors=True)

    @contextmanager
    def serving(self, settings: Mapping[str, str]) -> Iterator[ServedGateway]:
        """Run `magnus serve` until the block ends; enter it when all backends are healthy and the model predicts.

        Raises:
            StartError: the gateway does not start, or is not ready in time.
        """
        log = self.folder / "serve.log"
        command = [*self.checkout.command, "serve"]
        with running(command, self._environ(settings), log) as process:
            wait_until(lambda: bool(_announced_url(log)), process, log)
            url = _announced_url(log)
            wait_until(lambda: _is_ready(url), process, log)
            yield ServedGateway(url, process.pid)

    def _environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        backend = {"name": "gpu-0", "kind": "vllm", "url": self.engine_url}
        shared = {
            "MAGNUS_SERVER_PORT": "0",
            "MAGNUS_SERVER_SHUTDOWN_S": "2",
            "MAGNUS_DATABASE_DATA_DIR": str(self.folder / "data"),
            "MAGNUS_AUTH_ADMIN_KEY": ADMIN_KEY,
            "MAGNUS_LOG_LEVEL": "warning",
            "MAGNUS_BACKENDS": msgspec.json.encode([backend]).decode(),
        }
        return environ({**shared, **self.settings, **settings}, self.checkout.python_path)


@contextmanager
def running(command: list[str], variables: Mapping[str, str], log: Path) -> Iterator[Process]:
    """Run a command with its output in a log file; interrupt it when the block ends."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=variables, stdout=output, stderr=output, cwd=log.parent, start_new_session=True
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def canned_engine() -> Iterator[str]:
    """Run the engine that answers with canned bytes until the block ends; yield its URL.

    Raises:
        StartError: it does not start.
    """
    command = [sys.executable, "-m", "bench.overhead.engine"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ({}), start_new_session=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        if not url:
            raise StartError("the canned engine did not start")
        yield url
    finally:
        process.terminate()
        process.wait()


def wait_until(condition: Callable[[], bool], process: Process, log: Path) -> None:
    """Poll until the condition holds.

    Raises:
        StartError: the process ended, or the condition does not hold in time.
    """
    deadline_s = time.monotonic() + START_S
    while not condition():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline_s:
            what = "ended" if ended else f"was not ready after {START_S:g} s"
            tail = log.read_text(errors="replace").strip()[-LOG_TAIL_CHARS:]
            raise StartError(f"{process.args!r} {what}: {tail}")
        time.sleep(POLL_S)


def answers(url: str) -> bool:
    """Return whether a GET request succeeds."""
    try:
        return httpx2.get(url, trust_env=False, timeout=5.0).is_success
    except httpx2.HTTPError:
        return False


def _announced_url(log: Path) -> str:
    """Return the URL in the gateway's start-up line, or "" before the line is there."""
    found = _ANNOUNCED.search(log.read_text(errors="replace"))
    return found[1] if found else ""


def _is_ready(url: str) -> bool:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    stats = httpx2.get(f"{url}/admin/stats", headers=headers, trust_env=False).raise_for_status().json()
    return stats["predictor"]["source"] == "model" and all(backend["healthy"] for backend in stats["backends"])
