"""What holds for every route: HEAD, OPTIONS, Allow and CORS."""

import asyncio

import pytest

from tests.e2e.conftest import Served, StartEngine, StartGateway
from tests.e2e.engines import MODEL, Received, answer

pytestmark = pytest.mark.asyncio(loop_scope="session")

ORIGIN = "https://chat.example.com"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,x-stainless-os",
}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}


async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/v1/models", "/metrics"])
async def test_head_has_the_status_of_get_and_no_body(served_by: Served, path: str) -> None:
    gateway, _ = served_by(respond)
    head, get = await gateway.http.head(path), await gateway.http.get(path)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST, OPTIONS"),
        ("HEAD", "/v1/embeddings", "POST, OPTIONS"),
        ("PUT", "/v1/messages", "POST, OPTIONS"),
        ("POST", "/v1/models", "GET, HEAD, OPTIONS"),
        ("DELETE", "/health", "GET, HEAD, OPTIONS"),
        ("PUT", "/admin/backends/x", "PATCH, DELETE, OPTIONS"),
    ],
)
async def test_wrong_method_gets_the_allowed_ones(served_by: Served, method: str, path: str, allowed: str) -> None:
    gateway, _ = served_by(respond)
    refused = await gateway.http.request(method, path)
    options = await gateway.http.options(path)

    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)
    assert (options.status_code, options.headers["allow"]) == (204, allowed)
    assert "access-control-allow-origin" not in options.headers


async def test_options_of_an_unknown_route_is_not_found(served_by: Served) -> None:
    gateway, _ = served_by(respond)
    assert (await gateway.http.options("/v1/nothing")).status_code == 404


async def test_allowed_page_may_call_every_route_and_read_errors(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"), server={"cors": {"allow_origins": [ORIGIN]}})
    http, origin = gateway.http, {"origin": ORIGIN}
    preflights = [await http.options(path, headers=PREFLIGHT) for path in ("/v1/chat/completions", "/v1/embeddings")]
    answers = [
        await http.post("/v1/chat/completions", json=CHAT, headers=origin),
        await http.post("/v1/chat/completions", content=b"{", headers=origin),
        await http.get("/v1/models", headers=origin),
        await http.get("/v1/nothing", headers=origin),
    ]

    for preflight in preflights:
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert preflight.headers["access-control-max-age"] == "600"
    assert [answer.status_code for answer in answers] == [200, 400, 200, 404]
    assert {answer.headers["access-control-allow-origin"] for answer in [*preflights, *answers]} == {ORIGIN}
    assert {answer.headers["vary"] for answer in answers} == {"origin"}


async def test_other_pages_and_admin_routes_get_nothing(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"), server={"cors": {"allow_origins": [ORIGIN]}})
    stranger = await gateway.http.options("/v1/models", headers=PREFLIGHT | {"origin": "https://evil.example"})
    admin = await gateway.http.options("/admin/stats", headers=PREFLIGHT)
    read = await gateway.http.get("/admin/stats", headers={"origin": ORIGIN})

    for refused in (stranger, admin, read):
        assert not [name for name in refused.headers if name.startswith("access-control")]
