"""The code blocks of the README work as they stand, in their order, against the demo that the first one starts."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.config import load
from tests.polling import wait_until
from tests.unit.docs.markdown import ROOT, blocks

README = ROOT / "README.md"
START, *COMMANDS = blocks(README, "sh")
BIN = Path(sys.executable).parent
READY = "Ctrl-C stops everything."
TIMEOUT_S = 60.0

Run = Callable[[list[str]], str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment in which the demo listens on a free port and keeps its data in a folder of the test."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAGNUS_", "MAKE"))}
    return inherited | {
        "MAGNUS_SERVER_PORT": str(port),
        "MAGNUS_DATABASE_DATA_DIR": str(tmp_path_factory.mktemp("readme") / "data"),
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def demo(environment: dict[str, str]) -> Iterator[None]:
    """Run the README's first command until the module's tests end. The environment is installed already."""
    assert START.strip() == "make run"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            ["make", "-o", "setup", "run", f"BIN={BIN}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def printed() -> str:
            return os.pread(output.fileno(), 1 << 20, 0).decode()

        try:
            wait_until(lambda: READY in printed() or process.poll() is not None)
            assert process.poll() is None, printed()
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            process.wait(TIMEOUT_S)


@pytest.fixture
def run(demo: None, environment: dict[str, str]) -> Run:
    """Return a function that runs a command beside the demo and returns what it prints."""

    def run_it(command: list[str]) -> str:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_it


def here(code: str, environment: dict[str, str]) -> str:
    """Return a block with the demo's port and this environment's programs in place of the README's."""
    return code.replace("127.0.0.1:8080", f"127.0.0.1:{environment['MAGNUS_SERVER_PORT']}").replace(
        ".venv/bin", str(BIN)
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("code", COMMANDS, ids=lambda code: code.split()[0])
def test_shell_block_succeeds(code: str, run: Run, environment: dict[str, str]) -> None:
    printed = run(["bash", "-euc", here(code, environment)])
    assert ('"choices"' if code.startswith("curl") else "gpu-0") in printed


@pytest.mark.parametrize("code", blocks(README, "python"), ids=lambda code: code.split()[1])
def test_python_block_gets_an_answer(code: str, run: Run, environment: dict[str, str]) -> None:
    printed = run([sys.executable, "-c", f"{here(code, environment)}\nprint(answer.choices[0].message.content)"])
    assert printed.strip()


@pytest.mark.parametrize("code", blocks(README, "toml"), ids=lambda code: code.split()[0])
def test_toml_block_is_a_valid_settings_file(code: str, tmp_path: Path) -> None:
    file = tmp_path / "magnus.toml"
    file.write_text(code)
    settings = load(file, {})
    assert [backend.name for backend in settings.backends] == [
        entry["name"] for entry in tomllib.loads(code)["backends"]
    ]


def test_every_language_of_a_block_is_tested() -> None:
    languages = set(re.findall(r"^```(\w+)$", README.read_text(), re.MULTILINE))
    assert languages <= {"sh", "python", "toml"}
