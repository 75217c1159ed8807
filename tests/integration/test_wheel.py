"""The built wheel contains everything that an installation needs beside the Python modules."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel with the installed build backend, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, cwd=folder)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def tracked(folder: str) -> list[str]:
    """Return the files of a folder that git knows."""
    listed = subprocess.run(["git", "ls-files", "--", folder], cwd=ROOT, check=True, capture_output=True, text=True)
    return listed.stdout.splitlines()


@pytest.mark.parametrize("package", ["gateway", "backends"])
def test_package_is_complete(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()
    assert set(tracked(package)) <= set(wheel.namelist())


def test_migrations_are_included(wheel: zipfile.ZipFile) -> None:
    assert {name.replace("migrations/", "gateway/_migrations/") for name in tracked("migrations")} <= set(
        wheel.namelist()
    )


def test_benchmarks_and_tests_are_not_included(wheel: zipfile.ZipFile) -> None:
    assert not [name for name in wheel.namelist() if name.startswith(("bench/", "tests/"))]


def test_default_installation_needs_neither_torch_nor_transformers(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    requirements = Parser().parsestr(wheel.read(name).decode()).get_all("Requires-Dist") or []
    required = [line for line in requirements if "extra ==" not in line]
    assert required
    assert not [line for line in required if line.startswith(("torch", "transformers", "sentence", "scipy", "aiohttp"))]
