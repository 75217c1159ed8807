"""The lock files agree with `pyproject.toml` and with each other."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[str]] = PROJECT["dependency-groups"]
BASE: list[str] = PROJECT["project"]["dependencies"] + GROUPS["build"]
WANTED = {
    "gateway": BASE,
    "image": BASE + EXTRAS["embeddings"],
    "dev": [
        *BASE,
        *(line for extra in ("embeddings", "plots", "tgi") for line in EXTRAS[extra]),
        *(line for group in GROUPS.values() for line in group),
    ],
}
FILES = sorted((ROOT / "requirements").glob("*.txt"))


def locked(name: str) -> dict[str, set[str]]:
    """Return the locked versions of each package; there are two where Python versions differ."""
    versions: dict[str, set[str]] = {}
    for package, version in re.findall(
        r"^([\w.-]+)==([\w.+-]+)", (ROOT / f"requirements/{name}.txt").read_text(), re.M
    ):
        versions.setdefault(canonicalize_name(package), set()).add(version)
    return versions


@pytest.mark.parametrize(("name", "wanted"), [(name, line) for name, lines in WANTED.items() for line in lines])
def test_locked_version_satisfies_the_project(name: str, wanted: str) -> None:
    requirement = Requirement(wanted)
    versions = locked(name)[canonicalize_name(requirement.name)]
    assert all(requirement.specifier.contains(version) for version in versions)


@pytest.mark.parametrize("name", ["gateway", "image"])
def test_development_environment_has_the_versions_that_users_get(name: str) -> None:
    development = locked("dev")
    assert {package: development[package] for package in locked(name)} == locked(name)


@pytest.mark.parametrize("name", ["gateway", "image"])
def test_users_get_no_development_tool(name: str) -> None:
    assert not locked(name).keys() & {"pytest", "mypy", "ruff", "hypothesis", "matplotlib", "plotly"}


def test_gateway_needs_neither_torch_nor_transformers() -> None:
    assert not locked("gateway").keys() & {"torch", "transformers", "sentence-transformers", "scikit-learn", "aiohttp"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_package_has_hashes_and_no_address(path: Path) -> None:
    entries = re.split(r"^(?=[a-z])", path.read_text(), flags=re.M)[1:]
    assert entries
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in path.read_text()
