"""Run the Dockerfile's build stage without Docker: the same steps, in an empty folder instead of the file system.

The test shows that the copied files are enough to install from and that the result runs without the checkout. It does
not cover the base image, the user of the final stage, or the health check; those need Docker.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.unit.deploy.dockerfile import ROOT, Instruction, read_dockerfile, stages

# The build installs every dependency, torch included.
pytestmark = pytest.mark.timeout(600)


def run_build_stage(root: Path) -> None:
    folder = root
    for step in stages(read_dockerfile())[0][1:]:
        if step.word == "WORKDIR":
            folder = inside(root, step.rest)
            folder.mkdir(parents=True)
        elif step.word == "COPY":
            copy(step, folder)
        elif step.word == "ARG":
            continue  # pip reads the variable from the environment, here as in Docker
        elif "compileall" in step.rest:
            continue  # takes a minute of CPU time and changes nothing that the tests check
        else:
            assert step.word == "RUN"
            run(["sh", "-c", relocate(step.rest, root)], folder, environment(root))


def inside(root: Path, path: str) -> Path:
    return root / path.removeprefix("/")


def relocate(command: str, root: Path) -> str:
    return command.replace("/opt/", f"{root}/opt/")


def copy(step: Instruction, folder: Path) -> None:
    *sources, target = step.rest.split()
    if target.endswith("/"):
        (folder / target).mkdir(exist_ok=True)
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, folder / target)


def environment(root: Path) -> dict[str, str]:
    """Return the caller's environment with the base image's `python` and without any path into the checkout."""
    shims = root / "shims"
    shims.mkdir(exist_ok=True)
    python = shims / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.base_prefix}/bin/python3 "$@"\n')
    python.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAGNUS_", "VIRTUAL_"))}
    return kept | {"PATH": f"{shims}:/usr/bin:/bin"}


def run(command: list[str], folder: Path, variables: Mapping[str, str]) -> str:
    done = subprocess.run(
        command, cwd=folder, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        # A traceback would print the caller's environment.
        pytest.fail(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("image")
    run_build_stage(root)
    # The final stage has no sources.
    shutil.rmtree(root / "src")
    return root


def test_installed_command_runs_without_the_checkout(root: Path) -> None:
    assert "serve" in run([str(root / "opt/magnus/bin/magnus"), "--help"], root, environment(root))


def test_migrations_are_installed(root: Path) -> None:
    program = "import gateway, pathlib; print(pathlib.Path(gateway.__file__).parent)"
    package = Path(run([str(root / "opt/magnus/bin/python"), "-c", program], root, environment(root)).strip())
    assert package.is_relative_to(root)
    assert (package / "_migrations" / "env.py").is_file()
    assert list((package / "_migrations" / "versions").glob("*.py"))


def test_sentence_transformers_are_installed(root: Path) -> None:
    run([str(root / "opt/magnus/bin/python"), "-c", "import sentence_transformers"], root, environment(root))
