"""`magnus backend` in a process of its own, with a `vllm` on its path that is none."""

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import psutil

from tests.fake_vllm import EXECUTABLE, ROOT

DEADLINE_S = 60.0
POLL_S = 0.02
PATIENCE_S = 2.0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def installed_vllm(folder):
    """Put the executable into a folder; none of its engines may be left when the block ends."""
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
    """List the engines that run by the folder's executable."""
    executable = str(folder / "vllm")
    return [process for process in psutil.process_iter(["cmdline"]) if executable in (process.info["cmdline"] or ())]


@contextmanager
def command(folder, *arguments, kind=("vllm", "--model", "tiny")):
    """Run `magnus backend`, and end it with the block."""
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
            # Killed, it would leave its engine behind; told twice, it does not wait for what runs there.
            for _ in range(2):
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=PATIENCE_S)


@contextmanager
def running(folder, *arguments, **kind):
    """Run it until the block ends; yield it when it has said where its engine is."""
    with command(folder, *arguments, **kind) as process:
        yield process, process.stdout.readline().strip()


def until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
