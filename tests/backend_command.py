"""Helpers that run `magnus backend` as a process, with a fake `vllm` on its path."""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress

import psutil

from tests.fake_vllm import EXECUTABLE, ROOT

DEADLINE_S = 60.0
PATIENCE_S = 2.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def installed_vllm(folder):
    """Install the fake `vllm` into a folder. At the end of the block none of its engines may run."""
    executable = folder / "vllm"
    executable.write_text(EXECUTABLE)
    executable.chmod(0o755)
    try:
        yield folder
    finally:
        left = engines_of(folder)
        for engine in left:
            engine.kill()
        assert not left


def engines_of(folder):
    """Return the processes of the folder's fake `vllm`."""
    executable = str(folder / "vllm")
    return [process for process in psutil.process_iter(["cmdline"]) if executable in (process.info["cmdline"] or ())]


@contextmanager
def command(folder, *arguments, kind=("vllm", "--model", "tiny")):
    """Run `magnus backend` until the block ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAGNUS_", "VLLM_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "backend", *kind, *map(str, arguments)],
        env=environment | {"PATH": f"{folder}:{environment['PATH']}"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            # After SIGKILL its engine would keep running. The second SIGTERM skips the drain.
            for _ in range(2):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=PATIENCE_S)


@contextmanager
def running(folder, *arguments, **kind):
    """Run `magnus backend` until the block ends. Yields the process and the URL that it prints."""
    with command(folder, *arguments, **kind) as process:
        yield process, process.stdout.readline().strip()
