"""What can be told of the image without building it."""

import fnmatch

import pytest

from tests.unit.deploy.dockerfile import ROOT, Instruction, read_dockerfile, stages

BUILD, FINAL = stages(read_dockerfile())


def sources(stage: list[Instruction]) -> list[str]:
    copies = (step for step in stage if step.word == "COPY" and "from" not in step.flags)
    return [source for step in copies for source in step.rest.split()[:-1]]


def only(stage: list[Instruction], word: str) -> str:
    (found,) = [step.rest for step in stage if step.word == word]
    return found


@pytest.mark.parametrize("source", sources(BUILD))
def test_copied_source_exists(source: str) -> None:
    assert (ROOT / source).exists()


@pytest.mark.parametrize("source", sources(BUILD))
def test_copied_source_is_let_through(source: str) -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert f"!{source}" in rules


@pytest.mark.parametrize("secret", [".env", "magnus.toml", ".git"])
def test_secret_is_not_let_through(secret: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert not any(fnmatch.fnmatch(secret, rule[1:]) for rule in rules if rule.startswith("!"))


def test_final_stage_takes_only_the_environment() -> None:
    assert sources(FINAL) == []
    assert only(FINAL, "COPY") == "/opt/magnus /opt/magnus"


def test_both_stages_have_the_same_python() -> None:
    assert BUILD[0].rest.split()[0] == FINAL[0].rest.split()[0]


def test_final_stage_runs_as_nobody_special() -> None:
    assert only(FINAL, "USER") == "magnus"


def test_health_check_asks_for_readiness_without_curl() -> None:
    check = only(FINAL, "HEALTHCHECK")
    assert "/health/ready" in check
    assert "curl" not in check
