"""The processes that take part: the canned engine, and the proxies under test, each warm and on a core of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec

from bench.overhead.accounting import Accounts
from bench.overhead.client import Prompt
from bench.overhead.prompts import past_row

START_S = 120.0
STOP_S = 20.0
POLL_S = 0.1
MAGNUS = (sys.executable, "-m", "gateway.cli")
APPLICATION = "bench"
ADMIN_KEY = "admin-key-of-this-benchmark"
SOURCES = Path(__file__).parents[2]

NO_TRAINING = {
    "MAGNUS_PREDICTION_TRAIN_AFTER_ROWS": "1000000000",
    "MAGNUS_PREDICTION_TRAIN_EVERY_S": "1000000000",
    "MAGNUS_PREDICTION_MIN_TRAIN_ROWS": "1000000",
    "MAGNUS_PREDICTION_WINDOW_ROWS": "1000000",
}
"""A training has a process of its own, and is to fall into no measurement."""

_ANNOUNCED = re.compile(r"Magnus answers at (http://\S+)/v1")


class StartError(RuntimeError):
    """A process did not do what it was to do; the message ends in what it said."""


@dataclass(frozen=True, slots=True)
class Target:
    """A proxy that runs: where it is, the key to it, and its accounts; None of what nobody accounts for."""

    name: str
    url: str
    key: str
    accounts: Accounts | None = None


@contextmanager
def canned_engine() -> Iterator[str]:
    """Run the engine for as long as the block lasts; yield its URL."""
    command = [sys.executable, "-m", "bench.overhead.engine"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environ({}), start_new_session=True
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


@dataclass(frozen=True, slots=True)
class WarmGateway:
    """The gateway with everything on: keys, history in the embedded Postgres, a trained model, the static embedder.

    Args:
        folder: its data, its log.
        engine_url: the one backend.
    """

    folder: Path
    engine_url: str

    def warm_up(self, past: Iterator[tuple[Prompt, int]]) -> str:
        """Import past requests and train on them; return a key.

        Raises:
            StartError: a command failed.
        """
        rows = self.folder / "past.jsonl"
        with rows.open("wb") as file:
            for prompt, tokens in past:
                file.write(msgspec.json.encode(past_row(prompt, tokens, APPLICATION)) + b"\n")
        self._run("history", "import", str(rows))
        self._run("train")
        return self._run("keys", "create", "--app", APPLICATION).strip()

    @contextmanager
    def serving(self, key: str, core: set[int]) -> Iterator[Target]:
        """Run it until the block ends; yield it once it predicts by its trained model.

        Raises:
            StartError: it does not start, or is not ready in time.
        """
        log = self.folder / "serve.log"
        with _running([*MAGNUS, "serve"], self._environ() | NO_TRAINING, log) as process:
            url = _announced_url(process, log)
            _wait_until_ready(url, process, log)
            accounts = Accounts(process.pid)
            accounts.pin(core)
            yield Target("magnus", url, key, accounts)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*MAGNUS, *arguments], env=self._environ(), cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise StartError(f"magnus {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def _environ(self) -> dict[str, str]:
        backend = {"name": "engine", "kind": "vllm", "url": self.engine_url}
        return _environ(
            {
                "MAGNUS_SERVER_PORT": "0",
                "MAGNUS_SERVER_SHUTDOWN_S": "2",
                "MAGNUS_DATABASE_DATA_DIR": str(self.folder / "data"),
                "MAGNUS_AUTH_MODE": "keys",
                "MAGNUS_AUTH_ADMIN_KEY": ADMIN_KEY,
                "MAGNUS_LOG_LEVEL": "warning",
                "MAGNUS_BACKENDS": msgspec.json.encode([backend]).decode(),
            }
        )


@contextmanager
def proxy(name: str, command: list[str], *, url: str, key: str, log: Path, core: set[int]) -> Iterator[Target]:
    """Run another proxy until the block ends; yield it once it answers at `url`.

    Raises:
        StartError: it does not start, or is not ready in time.
    """
    with _running(command, _environ({"LITELLM_LOCAL_MODEL_COST_MAP": "True"}), log) as process:
        deadline_s = time.monotonic() + START_S
        while not _answers(f"{url}/health/liveliness"):
            _check_alive(process, log, deadline_s)
        accounts = Accounts(process.pid)
        accounts.pin(core)
        yield Target(name, url, key, accounts)


@contextmanager
def _running(command: list[str], environ: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environ, stdout=output, stderr=output, cwd=log.parent, start_new_session=True
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


def _announced_url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    deadline_s = time.monotonic() + START_S
    while not (found := _ANNOUNCED.search(log.read_text(errors="replace"))):
        _check_alive(process, log, deadline_s)
    return found[1]


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait until it knows its engine and predicts by the trained model."""
    deadline_s = time.monotonic() + START_S
    while not _predicts_by_model(url):
        _check_alive(process, log, deadline_s)


def _predicts_by_model(url: str) -> bool:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    stats = httpx2.get(f"{url}/admin/stats", headers=headers, trust_env=False).raise_for_status().json()
    return stats["predictor"]["source"] == "model" and all(backend["healthy"] for backend in stats["backends"])


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False, timeout=5.0).is_success
    except httpx2.HTTPError:
        return False


def _check_alive(process: "subprocess.Popen[bytes]", log: Path, deadline_s: float) -> None:
    if process.poll() is not None or time.monotonic() > deadline_s:
        what = "ended" if process.poll() is not None else f"was not ready after {START_S:g} s"
        raise StartError(f"{process.args!r} {what}: {log.read_text(errors='replace').strip()[-2000:]}")
    time.sleep(POLL_S)


def _environ(own: dict[str, str]) -> dict[str, str]:
    """The environment without any setting of the gateway, but for where its embedding is kept."""
    kept = {name: v for name, v in os.environ.items() if not name.startswith("MAGNUS_") or name == "MAGNUS_CACHE"}
    path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))
    return kept | {"PYTHONPATH": path} | own
