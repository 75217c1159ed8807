"""Starts a real vLLM on a free port and ends all of its processes afterwards.

A fixture of any scope can use it, because it needs no event loop::

    @pytest.fixture(scope="session")
    def vllm(tmp_path_factory):
        with running_engine(tmp_path_factory.mktemp("vllm")) as engine:
            yield engine
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.vllm_environment.install import environment, is_complete
from bench.vllm_environment.tether import members

TETHER = Path(__file__).with_name("tether.py")
SITE = Path(__file__).with_name("site")
MODEL = "tiny"
BLOCK_TOKENS = 32
BLOCKS = 128
MAX_MODEL_TOKENS = 2048
# KV memory is the first limit: 127 usable blocks of 32 tokens hold two answers of full length.
ARGUMENTS = (
    *("--served-model-name", MODEL, "--enforce-eager", "--max-model-len", str(MAX_MODEL_TOKENS)),
    *("--kv-cache-memory-bytes", "64M", "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(BLOCKS)),
    *("--scheduling-policy", "priority", "--enable-prompt-tokens-details"),
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# A tiny model needs one thread. Threads on every core would leave no CPU time for vLLM's HTTP server.
ONE_THREAD = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
START_TIMEOUT_S = 240.0
LOG_TAIL_LINES = 40


class EngineError(Exception):
    """The engine is not installed, did not start, or died. The message ends with the last lines of its log."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running vLLM server."""

    url: str
    port: int
    log: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Kill the server and all processes that it started. Idempotent."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """Return the last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def running_engine(
    folder: Path, *arguments: str, port: int | None = None, timeout_s: float = START_TIMEOUT_S
) -> Iterator[Engine]:
    """Run a server until the block ends.

    Args:
        folder: The folder for its log and temporary files.
        arguments: Further command-line arguments for vLLM; a repeated one overrides the default.
        port: The port, if the server replaces one that died; a free port by default.
        timeout_s: The longest time that its start may take.

    Raises:
        EngineError: If it is not installed, dies, or is not ready in time.
    """
    engine = _start(folder, arguments, port or _free_port())
    try:
        _wait_until_ready(engine, timeout_s)
        yield engine
    finally:
        engine.kill()


def _start(folder: Path, arguments: Sequence[str], port: int) -> Engine:
    home = environment()
    if not is_complete(home):
        raise EngineError("vLLM is not installed: run make test-vllm")
    python = str(home / "bin" / "python")
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(home / "tiny")]
    command += ["--host", "127.0.0.1", "--port", str(port), *ARGUMENTS, *arguments]
    log = folder / f"vllm-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, str(TETHER), *command],
            env=_environment_variables(home, folder),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Engine(f"http://127.0.0.1:{port}", port, log, process)


def _environment_variables(home: Path, folder: Path) -> dict[str, str]:
    # The engine has its own Python environment, so the caller's Python variables must not reach it.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VLLM_"))}
    own = {"VLLM_CACHE_ROOT": str(home / "cache"), "TMPDIR": str(folder), "PYTHONPATH": str(SITE)}
    return inherited | OFFLINE | ONE_THREAD | own


def _wait_until_ready(engine: Engine, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if engine.process.poll() is not None:
            raise EngineError(f"vLLM ended with code {engine.process.returncode}:\n{engine.log_tail()}")
        if _answers(f"{engine.url}/health") and _owns_port(engine):
            return
        time.sleep(0.25)
    raise EngineError(f"vLLM was not ready after {timeout_s:g} s:\n{engine.log_tail()}")


def _answers(url: str) -> bool:
    # The engine is local, so proxy settings of the environment are ignored.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _owns_port(engine: Engine) -> bool:
    """Return whether one of the engine's own processes listens: another server may use the port."""
    listener = _listening_socket(engine.port)
    return any(listener in _open_files(pid) for pid in members(os.getsid, engine.process.pid))


def _listening_socket(port: int) -> str:
    """Return the name in `/proc/PID/fd` of the socket that listens on a port of IPv4 loopback."""
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *rest = row.split()
        if state == "0A" and int(local.split(":")[1], 16) == port:
            return f"socket:[{rest[5]}]"
    return ""


def _open_files(pid: str) -> set[str]:
    try:
        return {os.readlink(entry) for entry in Path("/proc", pid, "fd").iterdir()}
    except OSError:
        # The process ended after it was listed.
        return set()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
