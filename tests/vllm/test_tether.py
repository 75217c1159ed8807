"""When the holder closes the pipe, the command and all of its processes end."""

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
    """Return whether a process runs; a zombie has ended. The command line is no sign: it is empty during `exec`."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def tethered(program: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TETHER), sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def test_grandchild_ends_when_the_holder_closes_the_pipe() -> None:
    with tethered(PARENT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert runs(grandchild)
        process.stdin.close()
        process.wait(timeout=10)
        assert not runs(grandchild)


def test_exit_code_is_that_of_the_command() -> None:
    started = time.monotonic()
    with tethered("raise SystemExit(7)") as process:
        assert process.wait(timeout=10) == 7
    assert time.monotonic() - started < 5
