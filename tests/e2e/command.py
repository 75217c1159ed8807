"""Runs the `magnus` command as its users do: in its own process and its own folder."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil

from tests.polling import wait_until

DEADLINE_S = 60.0
MAGNUS = (sys.executable, "-m", "gateway.cli")


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of the command, and its environment."""

    folder: Path

    @property
    def data_dir(self) -> Path:
        """Return the folder of database, journal and keys."""
        return self.folder / "data"

    def environ(self, **variables: str) -> dict[str, str]:
        """Return the environment, with the test's settings only."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAGNUS_")}
        own = {"MAGNUS_DATABASE_DATA_DIR": str(self.data_dir), "MAGNUS_PREDICTION_EMBEDDER": "off"}
        return inherited | own | variables

    def run(self, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*MAGNUS, *map(str, arguments)],
            env=self.environ(**variables),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    @contextmanager
    def start(self, *arguments: object, announced_by: str, **variables: str) -> Iterator["Running"]:
        """Start a command that keeps running, wait for its announcement, and end it with the block."""
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                [*MAGNUS, *map(str, arguments)],
                env=self.environ(**variables),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            running = Running(process, said.fileno())
            try:
                wait_until(lambda: announced_by in running.said() or process.poll() is not None)
                assert process.poll() is None, running.said()
                yield running
            finally:
                if process.poll() is None:
                    running.interrupt()

    @contextmanager
    def demo(self, *options: object, **variables: str) -> Iterator["RunningDemo"]:
        """Run `magnus demo` on a free port until the block ends."""
        arguments = ("demo", "--port", 0, "--speed", 20, *options)
        with self.start(*arguments, announced_by="Ctrl-C stops everything.", **variables) as running:
            yield RunningDemo(running)


@dataclass(frozen=True, slots=True)
class Running:
    """A running command."""

    process: subprocess.Popen[Any]
    _said_fd: int

    def said(self) -> str:
        """Return its output so far, stdout and stderr."""
        return os.pread(self._said_fd, 1 << 20, 0).decode()

    def family(self) -> list[psutil.Process]:
        """Return it and all processes that it started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def interrupt(self) -> int:
        """Send SIGINT to the process group, as Ctrl-C does. Return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(DEADLINE_S)


class RunningDemo:
    """A demo, with the addresses and the key from its banner."""

    def __init__(self, running: Running) -> None:
        self.running = running
        banner = running.said()
        self.url = _found(r"Magnus answers at (http://\S+)/v1", banner)
        self.engine_url = _found(r"gpu-0 (http://[^\s,)]+)", banner)
        self.admin_key = _found(r"^Admin key: (\S+)$", banner)
        self.curl = _found(r"^ *(curl \S+/v1/chat/completions (?:.*\\\n)*.*)$", banner)
        self.curl_for_stats = _found(r"^ *(curl \S+/admin/stats .*)$", banner)

    def stats(self) -> dict[str, Any]:
        """Read `/admin/stats`."""
        response = httpx2.get(f"{self.url}/admin/stats", headers={"authorization": f"Bearer {self.admin_key}"})
        assert response.status_code == 200, response.text
        return response.json()

    def history(self) -> dict[str, Any]:
        """Read the part of the stats that is kept after a restart."""
        stats = self.stats()
        return {name: stats[name] for name in ("apps", "users", "totals")}


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, f"{pattern} is not in:\n{text}"
    return match[1]


def bash(script: str) -> dict[str, Any]:
    """Run a shell command and decode the JSON that it prints."""
    command = ["bash", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return json.loads(done.stdout)


def processes_with(text: str) -> list[psutil.Process]:
    """Return this machine's processes whose command line contains the text."""
    running = psutil.process_iter(["cmdline"])
    return [process for process in running if text in " ".join(process.info["cmdline"] or ())]


def assert_one_line(stderr: str, *words: object) -> None:
    """Check that an error is one line that contains all these words."""
    (line,) = stderr.strip().splitlines()
    assert line.startswith("magnus: ")
    for word in words:
        assert str(word) in line
