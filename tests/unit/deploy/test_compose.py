"""What can be told of the Compose file without Docker."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.unit.deploy.dockerfile import ROOT

SCHEMA = json.loads(Path(__file__).with_name("compose-spec.schema.json").read_text())
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONFIGS = sorted((ROOT / "deploy").rglob("*.toml"))
VARIABLE = re.compile(r"\$\{([A-Z_]+)")


def services_of(profile: str) -> set[str]:
    return {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}


def healthy_dependencies() -> list[tuple[str, str]]:
    return [
        (name, target)
        for name, service in SERVICES.items()
        for target, how in service.get("depends_on", {}).items()
        if how["condition"] == "service_healthy"
    ]


def test_file_follows_the_specification() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(COMPOSE)


@pytest.mark.parametrize(("service", "target"), healthy_dependencies())
def test_dependency_that_must_be_healthy_has_a_check(service: str, target: str) -> None:
    assert "test" in SERVICES[target]["healthcheck"]
    assert set(SERVICES[service].get("profiles", [])) <= set(SERVICES[target].get("profiles", ["sim", "gpu"]))


def test_default_profile_needs_no_gpu() -> None:
    assert services_of("sim") == {"gateway", "postgres", "engine-0", "engine-1"}
    assert not any("deploy" in SERVICES[name] for name in services_of("sim"))


def test_gpu_profile_takes_the_simulated_engines_place() -> None:
    assert services_of("gpu") == {"gateway-gpu", "postgres", "vllm", "tgi"}


def test_example_environment_starts_the_simulated_engines() -> None:
    assert "COMPOSE_PROFILES=sim\n" in (ROOT / ".env.example").read_text()


@pytest.mark.parametrize("variable", sorted(set(VARIABLE.findall(TEXT))))
def test_variable_is_in_the_example_environment(variable: str) -> None:
    assert re.search(rf"^#?{variable}=", (ROOT / ".env.example").read_text(), re.MULTILINE)


@pytest.mark.parametrize("secret", ["MAGNUS_AUTH_ADMIN_KEY", "POSTGRES_PASSWORD"])
def test_secret_has_no_default(secret: str) -> None:
    uses = re.findall(rf"\$\{{{secret}([^}}]*)\}}", TEXT)
    assert uses
    assert all(use.startswith(":?") for use in uses)
    assert f"{secret}=\n" in (ROOT / ".env.example").read_text()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_config_holds_no_secret(config: Path) -> None:
    assert not re.search("key|password|token", config.read_text().partition("[[backends]]")[2])


@pytest.mark.parametrize(("gateway", "profile"), [("gateway", "sim"), ("gateway-gpu", "gpu")])
def test_gateway_s_backends_are_services_of_its_profile(gateway: str, profile: str) -> None:
    mounted = SERVICES[gateway]["volumes"][0].split(":")[0]
    backends = tomllib.loads((ROOT / mounted).read_text())["backends"]
    hosts = {re.sub(r"^http://([^:]+):\d+$", r"\1", backend["url"]) for backend in backends}
    assert hosts == services_of(profile) - {gateway, "postgres"}


def test_published_port_is_loopback_by_default() -> None:
    assert SERVICES["gateway"]["ports"] == ["${PUBLISH:-127.0.0.1:8080}:8080"]
