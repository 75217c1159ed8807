"""PostgreSQL's programs in a folder that only root may enter, where the server runs as another user."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.storage import postgres_supervisor
from gateway.storage.postgres_supervisor import SupervisorError, reachable_binaries, server_binaries

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")


@pytest.fixture
def private() -> Iterator[Path]:
    """PostgreSQL's programs, installed below a folder of mode 0700."""
    with tempfile.TemporaryDirectory() as folder:
        installed = server_binaries()
        package = installed.parents[1]
        site = Path(folder) / "site-packages"
        shutil.copytree(installed.parent, site / package.name / installed.parent.name, symlinks=True)
        shutil.copytree(package.parent / f"{package.name}.libs", site / f"{package.name}.libs")
        (site / package.name / "__init__.py").touch()
        yield site / package.name / installed.parent.name / "bin"


@pytest.fixture
def cache() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_programs_that_everybody_can_reach_are_not_copied(cache: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        program = Path(folder) / "postgres"
        program.touch()
        program.chmod(0o755)

        assert reachable_binaries(Path(folder), [cache]) == Path(folder)
    assert list(cache.iterdir()) == []


def test_unreachable_programs_are_copied_once_and_run(private: Path, cache: Path) -> None:
    first = reachable_binaries(private, [cache])
    again = reachable_binaries(private, [cache])

    assert first == again
    assert first.is_relative_to(cache)
    version = [*postgres_supervisor._as_server_user(), "--", str(first / "initdb"), "--version"]
    assert b"PostgreSQL" in subprocess.run(version, check=True, capture_output=True).stdout
    assert len(list(cache.iterdir())) == 1


def test_copy_that_others_may_change_is_not_run(private: Path, cache: Path) -> None:
    copy = reachable_binaries(private, [cache]).parents[2]
    copy.chmod(0o777)

    with pytest.raises(SupervisorError, match="MAGNUS_CACHE"):
        reachable_binaries(private, [cache])


def test_error_names_what_to_do_when_no_folder_can_be_entered(private: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as unreachable,
        pytest.raises(SupervisorError, match=f"{unreachable}.*MAGNUS_CACHE"),
    ):
        reachable_binaries(private, [Path(unreachable)])


def test_server_starts_from_a_private_folder(private: Path, cache: Path, tmp_path: Path) -> None:
    program = (sys.executable, postgres_supervisor.__file__, str(tmp_path / "home"))
    environ = os.environ | {"PYTHONPATH": str(private.parents[2]), "MAGNUS_CACHE": str(cache)}
    ended = subprocess.run(program, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)

    assert (ended.returncode, ended.stdout.partition(":")[0]) == (0, "postgresql+asyncpg")
