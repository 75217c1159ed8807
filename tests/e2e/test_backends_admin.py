"""Backends that are added, changed, drained and removed at run time through `/admin/backends`."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import MODEL, Engine, FakeEngine, HeldBack, Received, answer
from tests.e2e.gateway import ADMIN_KEY, Gateway, serving, settings_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

KEY = {"authorization": f"Bearer {ADMIN_KEY}"}
SECRET = "sesame-sesame-sesame"


async def admin(gateway: Gateway, method: str, path: str = "", **options: Any) -> httpx2.Response:
    return await gateway.http.request(method, f"/admin/backends{path}", headers=KEY, **options)


async def add(gateway: Gateway, engine: Engine | FakeEngine, name: str, **fields: Any) -> httpx2.Response:
    return await admin(gateway, "POST", json=engine.backend(name, **fields))


async def names(gateway: Gateway) -> list[str]:
    return [backend["name"] for backend in (await admin(gateway, "GET")).json()["backends"]]


async def send(gateway: Gateway) -> httpx2.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    return await gateway.http.post("/v1/chat/completions", json=body)


async def answers(gateway: Gateway) -> None:
    async def does() -> bool:
        return (await send(gateway)).status_code == 200

    await until(does, "a backend serves")


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    return response.json()["error"]


async def test_added_backend_serves_and_is_kept_over_a_restart(
    simulated_engine: Engine, start_gateway: StartGateway, database_url: str, tmp_path: Path
) -> None:
    async with serving(settings_of(database_url, tmp_path, []), ready=False) as gateway:
        assert (await send(gateway)).status_code == 503
        added = await add(gateway, simulated_engine, "new", api_key=SECRET, max_concurrency=7)
        assert (added.status_code, added.json()["source"]) == (201, "admin")
        await answers(gateway)
        listed = await admin(gateway, "GET")
    later = await start_gateway(ready=False)
    await answers(later)
    (kept,) = (await admin(later, "GET")).json()["backends"]

    assert (kept["name"], kept["max_concurrency"], kept["has_api_key"]) == ("new", 7, True)
    assert [member["circuit"] for member in kept["members"]] == ["closed"]
    for response in (added, listed):
        assert SECRET not in response.text


async def test_changes_are_kept_over_a_restart(
    simulated_engine: Engine, start_gateway: StartGateway, database_url: str, tmp_path: Path
) -> None:
    async with serving(settings_of(database_url, tmp_path, []), ready=False) as gateway:
        await add(gateway, simulated_engine, "new")
        changed = await admin(gateway, "PATCH", "/new", json={"max_concurrency": 2, "draining": True})
        assert (changed.json()["max_concurrency"], changed.json()["draining"]) == (2, True)
    later = await start_gateway(ready=False)
    (kept,) = (await admin(later, "GET")).json()["backends"]
    assert (kept["max_concurrency"], kept["draining"]) == (2, True)
    assert (await send(later)).status_code == 503
    assert (await admin(later, "PATCH", "/new", json={"max_concurrency": None, "draining": False})).status_code == 200
    await answers(later)
    assert (await admin(later, "GET")).json()["backends"][0]["max_concurrency"] is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": "llama.cpp"}, "kind"),
        ({"url": "gpu-0:8000"}, "url"),
        ({"url": f"http://me:{SECRET}@gpu-0"}, "url"),
        ({"url": "http://gpu 0"}, "url"),
        ({"kv_tokens": 0}, "kv_tokens"),
        ({"max_concurrency": "8"}, "max_concurrency"),
        ({"models": ["a", 7]}, "models[1]"),
        ({"name": "a/b"}, "name"),
        ({"api_key": SECRET + "\n"}, "api_key"),
        ({"colour": "red"}, "colour"),
        ({"resolve": "each", "url": "https://gpu-0"}, "resolve"),
    ],
)
async def test_wrong_field_is_named(
    simulated_engine: Engine, start_gateway: StartGateway, fields: dict[str, Any], named: str
) -> None:
    gateway = await start_gateway(simulated_engine.backend("good"))
    response = await admin(gateway, "POST", json={**simulated_engine.backend("new"), **fields})
    error = error_of(response, 400)
    assert (error["code"], error["param"]) == ("invalid_request", named)
    assert SECRET not in response.text
    assert await names(gateway) == ["good"]


async def test_impossible_operation_is_rejected(simulated_engine: Engine, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(simulated_engine.backend("good"))
    await add(gateway, simulated_engine, "new")
    refused = [
        (await admin(gateway, "POST", content=b"{"), 400, None),
        (await admin(gateway, "POST", json=[1]), 400, None),
        (await admin(gateway, "POST", json={"name": "x"}), 400, "kind"),
        (await add(gateway, simulated_engine, "good"), 409, "name"),
        (await add(gateway, simulated_engine, "new"), 409, "name"),
        (await admin(gateway, "PATCH", "/new", json={"name": "newer"}), 400, "name"),
        (await admin(gateway, "PATCH", "/new", json={"url": "a"}), 400, "url"),
        (await admin(gateway, "PATCH", "/new", json={"colour": "red"}), 400, "colour"),
        (await admin(gateway, "PATCH", "/new", json={"draining": 1}), 400, "draining"),
        (await admin(gateway, "PATCH", "/new", json={"kv_tokens": -1}), 400, "kv_tokens"),
        (await admin(gateway, "PATCH", "/good", json={"kv_tokens": 100}), 409, None),
        (await admin(gateway, "PATCH", "/nobody", json={"draining": True}), 404, "name"),
        (await admin(gateway, "DELETE", "/good"), 409, None),
        (await admin(gateway, "DELETE", "/nobody"), 404, "name"),
        (await admin(gateway, "DELETE", "/new", params={"force": "maybe"}), 400, "force"),
        (await gateway.http.get("/admin/backends"), 401, None),
        (await gateway.http.post("/admin/backends", json=simulated_engine.backend("x")), 401, None),
    ]
    assert [refused[at][0].json()["error"]["code"] for at in (3, 4)] == ["backend_configured", "backend_exists"]
    for response, status, param in refused:
        assert error_of(response, status)["param"] == param
    assert await names(gateway) == ["new", "good"]


async def test_backend_of_the_file_overrides_a_stored_one_of_its_name(
    start_engine: StartEngine, simulated_engine: Engine, start_gateway: StartGateway, database_url: str, tmp_path: Path
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    other = await start_engine(respond)
    async with serving(settings_of(database_url, tmp_path, []), ready=False) as gateway:
        await add(gateway, other, "gpu")
    later = await start_gateway(simulated_engine.backend("gpu"))
    (backend,) = (await admin(later, "GET")).json()["backends"]
    assert (backend["source"], backend["url"]) == ("file", simulated_engine.url)


async def test_removed_backend_finishes_its_running_requests(
    start_engine: StartEngine, simulated_engine: Engine, start_gateway: StartGateway
) -> None:
    answers_held = HeldBack()
    held = await start_engine(answers_held)
    gateway = await start_gateway()
    for force in ("false", "true"):
        answers_held.go.clear()
        sent = len(held.received)
        await add(gateway, held, "held")
        await until(gateway.shows("magnus_backend_takes_work", 1, backend="held"), "it may get work")
        running = asyncio.create_task(send(gateway))
        await until(held.has_received(sent + 1), "the engine has a request")
        removed = await admin(gateway, "DELETE", "/held", params={"force": force})
        assert (removed.status_code, removed.json()["draining"]) == (202, [] if force == "true" else ["held"])
        assert await names(gateway) == []
        assert (await send(gateway)).status_code == 503
        answers_held.go.set()
        assert (await running).headers["x-magnus-backend"] == "held"

        async def is_gone() -> bool:
            return (await gateway.stats())["backends"] == []

        await until(is_gone, "the backend is removed")
    await add(gateway, simulated_engine, "held")
    await answers(gateway)


async def test_name_of_a_draining_backend_can_be_added_again(
    start_engine: StartEngine, simulated_engine: Engine, start_gateway: StartGateway
) -> None:
    answers_held = HeldBack()
    held = await start_engine(answers_held)
    gateway = await start_gateway()
    await add(gateway, held, "gpu")
    await until(gateway.shows("magnus_backend_takes_work", 1, backend="gpu"), "it may get work")
    running = asyncio.create_task(send(gateway))
    await until(held.has_received(1), "the engine has a request")
    await admin(gateway, "DELETE", "/gpu")
    assert (await add(gateway, simulated_engine, "gpu")).status_code == 201
    await answers(gateway)
    answers_held.go.set()
    assert (await running).json()["choices"][0]["message"]["content"] == "hello"


async def test_backend_serves_at_its_new_address(
    start_engine: StartEngine, simulated_engine: Engine, start_gateway: StartGateway
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())

    gateway = await start_gateway()
    await add(gateway, await start_engine(respond), "gpu")
    await answers(gateway)
    moved = await admin(gateway, "PATCH", "/gpu", json={"url": simulated_engine.url, "max_concurrency": 3})
    assert moved.json()["url"] == simulated_engine.url
    assert (await send(gateway)).json()["choices"][0]["message"]["content"] != "hello"


async def test_without_a_database_no_change_is_applied(simulated_engine: Engine, tmp_path: Path) -> None:
    away = "postgresql+asyncpg://nobody@127.0.0.1:1/nothing"
    async with serving(settings_of(away, tmp_path, [simulated_engine.backend("good")])) as gateway:
        assert error_of(await add(gateway, simulated_engine, "new"), 503)["code"] == "backends_unavailable"
        assert await names(gateway) == ["good"]
        assert [backend["name"] for backend in (await gateway.stats())["backends"]] == ["good"]
        drained = await admin(gateway, "PATCH", "/good", json={"draining": True})
        assert drained.json()["draining"] is True


async def test_host_name_with_several_addresses_becomes_several_backends(
    simulated_engine: Engine, start_gateway: StartGateway
) -> None:
    port = simulated_engine.url.rsplit(":", 1)[1]
    named = {"name": "gpu", "kind": "vllm", "url": f"http://localhost:{port}", "resolve": "each"}
    gateway = await start_gateway(named, ready=False)
    await answers(gateway)
    response = await send(gateway)

    assert response.headers["x-magnus-backend"] == "gpu@127.0.0.1"
    (backend,) = (await admin(gateway, "GET")).json()["backends"]
    assert "gpu@127.0.0.1" in [member["name"] for member in backend["members"]]
