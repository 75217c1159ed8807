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


def started_by(*names: str) -> set[str]:
    """What `docker compose up NAME...` starts: the services and all that they depend on."""
    dependencies = {target for name in names for target in SERVICES[name].get("depends_on", {})}
    return {*names, *(started_by(*dependencies) if dependencies else ())}


DEFAULT = {name for name, service in SERVICES.items() if "profiles" not in service}


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
    assert set(SERVICES[target].get("profiles", [])) <= set(SERVICES[service].get("profiles", []))


def test_plain_up_needs_no_gpu() -> None:
    assert {"gateway", "postgres", "engine-0", "engine-1"} == DEFAULT
    assert not any("deploy" in SERVICES[name] for name in DEFAULT)


def test_real_engines_take_the_simulated_ones_place() -> None:
    assert started_by("gateway-gpu") == {"gateway-gpu", "postgres", "vllm", "tgi"}
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["gpu"]} == {
        "gateway-gpu",
        "vllm",
        "tgi",
    }


def test_nothing_must_be_set_before_the_first_start() -> None:
    assert not re.search(r"\$\{[A-Z_]+(:?\?[^}]*)?\}", TEXT)


def test_database_is_reached_from_the_gateways_alone() -> None:
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert SERVICES["postgres"]["networks"] == ["database"]
    assert "ports" not in SERVICES["postgres"]
    on_it = {name for name, service in SERVICES.items() if "database" in service.get("networks", [])}
    assert on_it == {"gateway", "gateway-gpu", "postgres"}


@pytest.mark.parametrize("variable", sorted(set(VARIABLE.findall(TEXT))))
def test_variable_is_in_the_example_environment(variable: str) -> None:
    assert re.search(rf"^#?{variable}=", (ROOT / ".env.example").read_text(), re.MULTILINE)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_config_holds_no_secret(config: Path) -> None:
    assert not re.search("key|password|token", config.read_text().partition("[[backends]]")[2])


@pytest.mark.parametrize(
    ("gateway", "engines"), [("gateway", {"engine-0", "engine-1"}), ("gateway-gpu", {"vllm", "tgi"})]
)
def test_gateway_s_backends_are_its_engines(gateway: str, engines: set[str]) -> None:
    mounted = SERVICES[gateway]["volumes"][0].split(":")[0]
    backends = tomllib.loads((ROOT / mounted).read_text())["backends"]
    assert {re.sub(r"^http://([^:]+):\d+$", r"\1", backend["url"]) for backend in backends} == engines


@pytest.mark.parametrize("gateway", ["gateway", "gateway-gpu"])
def test_published_port_is_loopback_by_default(gateway: str) -> None:
    (port,) = SERVICES[gateway]["ports"]
    assert re.fullmatch(r"\$\{[A-Z_]+:-127\.0\.0\.1:\d+\}:8080", port)
