"""A command that is let go takes all that it started with it."""

import subprocess
import sys
import time
from pathlib import Path

from bench.vllm_environment.engine import TETHER

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def runs(pid: int) -> bool:
    """Tell a running process from one that has ended, reaped or not."""
    try:
        return bool(Path("/proc", str(pid), "cmdline").read_bytes())
    except OSError:
        return False


def tethered(program: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TETHER), sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def test_grandchild_ends_when_the_holder_lets_go() -> None:
    with tethered(PARENT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert runs(grandchild)
        process.stdin.close()
        process.wait(timeout=10)
        assert not runs(grandchild)


def test_exit_code_is_the_command_s() -> None:
    started = time.monotonic()
    with tethered("raise SystemExit(7)") as process:
        assert process.wait(timeout=10) == 7
    assert time.monotonic() - started < 5
