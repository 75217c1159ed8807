"""Input that the gateway must reject: OpenAI's error format names the fault, and no success is recorded."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from sqlalchemy import URL

from gateway.storage.database import create_database_engine
from gateway.storage.keys import KeyStore
from tests.e2e.engines import MODEL, Engine
from tests.e2e.gateway import ADMIN_KEY, Gateway, fresh_database, serving, settings_of, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

StartGateway = Callable[..., Awaitable[Gateway]]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MEGABYTE = 1024 * 1024
BODY_TIMEOUT_S = 1.0
PROMPT = "a-prompt-that-no-log-may-have"
SECRET = "mg-a-secret-that-no-log-may-have"
CLIENT_LOGGERS = ("openai", "httpx", "httpx2", "httpcore", "httpcore2")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def gateway(
    simulated_engine: Engine, postgres_server: URL, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateway]:
    async with fresh_database(postgres_server) as database_url:
        folder, server = tmp_path_factory.mktemp("gateway"), {"body_timeout_s": BODY_TIMEOUT_S}
        settings = settings_of(database_url, folder, [simulated_engine.backend()], server=server)
        async with serving(settings) as gateway:
            yield gateway
            # The counts in the metrics after each test must equal the counts in history at the end.
            assert (await gateway.stats())["totals"]["ok"] == 0


@pytest_asyncio.fixture(loop_scope="session", autouse=True)
async def _nothing_succeeds_and_nothing_leaks(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[None]:
    """Check for every test: history has no success of it, and no log contains its prompts and keys."""
    caplog.set_level(logging.DEBUG)
    yield
    assert await gateway.metric("magnus_requests_total", status="ok") == 0
    ours = [record for record in caplog.records if not record.name.startswith(CLIENT_LOGGERS)]
    logged = "\n".join(f"{record.getMessage()} {record.exc_text or ''}" for record in ours)
    assert PROMPT not in logged
    assert SECRET not in logged
    assert ADMIN_KEY not in logged


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2, **fields}


def completion(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": PROMPT, "max_tokens": 2, **fields}


def error_of(response: httpx2.Response, status: int) -> dict[str, Any]:
    """Check that a response is OpenAI's error object and nothing else, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert PROMPT not in response.text
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "tiny", "messages": [}',
        b'{"model": "tiny"} trailing',
        b"\xff\xfe{}",
        b'{"model": "\xff"}',
        b"[" * 100_000,
        b'{"model": "tiny", "messages": ' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_body_that_is_no_json_object_is_rejected(gateway: Gateway, path: str, body: bytes) -> None:
    response = await gateway.http.post(path, content=body, headers={"content-type": "application/json"})

    assert error_of(response, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(messages=[])),
        (CHAT, chat(messages=[{"role": "user", "content": 7}])),
        (CHAT, chat(n="two")),
        (CHAT, chat(max_tokens="many")),
        (CHAT, chat(model=7)),
        (COMPLETIONS, completion(prompt="")),
        (COMPLETIONS, completion(max_tokens=-1)),
    ],
)
async def test_wrong_prompt_or_field_is_left_to_the_engine(
    start_gateway: StartGateway, simulated_engine: Engine, path: str, body: dict[str, Any]
) -> None:
    gateway = await start_gateway(simulated_engine.backend())

    assert error_of(await gateway.http.post(path, json=body), 400)["type"] == "BadRequestError"


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat(model="other")), (COMPLETIONS, completion(model="another"))])
async def test_unknown_model_is_named_in_the_error(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    error = error_of(await gateway.http.post(path, json=body), 404)

    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert repr(body["model"]) in error["message"]


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat()), (COMPLETIONS, completion())])
async def test_prompt_of_20_megabytes_is_too_large(gateway: Gateway, path: str, body: dict[str, Any]) -> None:
    text = "x" * (20 * MEGABYTE)
    body = body | ({"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text})

    assert error_of(await gateway.http.post(path, json=body), 413)["code"] == "request_too_large"


async def test_body_over_the_limit_is_too_large(gateway: Gateway) -> None:
    image = {"type": "image_url", "image_url": {"url": "x" * (33 * MEGABYTE)}}
    body = chat(messages=[{"role": "user", "content": [image]}])

    assert error_of(await gateway.http.post(CHAT, json=body), 413)["code"] == "request_too_large"


HALF = json.dumps(chat()).encode()[:-10]


@asynccontextmanager
async def half_sent(gateway: Gateway, framing: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send half a body, and keep the connection open for as long as the block lasts."""
    url = httpx2.URL(gateway.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n".encode())
        writer.write(framing)
        await writer.drain()
        yield reader
    finally:
        writer.close()
        await writer.wait_closed()


both_framings = pytest.mark.parametrize(
    "framing",
    [
        b"content-length: %d\r\n\r\n%b" % (len(HALF) + 10, HALF),
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(HALF), HALF),
    ],
    ids=["length", "chunked"],
)


@both_framings
async def test_incomplete_body_times_out(gateway: Gateway, framing: bytes) -> None:
    async with half_sent(gateway, framing) as reader:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        body = json.loads(await reader.readexactly(length))

    assert head.startswith("http/1.1 408")
    assert body["error"]["code"] == "request_timeout"


@both_framings
async def test_client_that_disconnects_within_its_body_is_not_a_success(gateway: Gateway, framing: bytes) -> None:
    cancelled = await gateway.metric("magnus_requests_total", status="cancelled")
    async with half_sent(gateway, framing):
        pass

    await until(
        gateway.shows("magnus_requests_total", cancelled + 1, status="cancelled"),
        "the request that its client gave up is counted",
    )


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/v1/models", "/admin/stats", "/health/live"])
async def test_wrong_method_is_not_allowed(gateway: Gateway, path: str) -> None:
    wrong = "GET" if path in {CHAT, COMPLETIONS} else "DELETE"

    error = error_of(await gateway.http.request(wrong, path), 405)

    assert error["code"] == "method_not_allowed"
    assert path in error["message"]


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/images/generations", "/chat/completions", "/v1/chat/completions/x", "/admin"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unknown_route_is_not_found(gateway: Gateway, method: str, path: str) -> None:
    assert error_of(await gateway.http.request(method, path), 404)["code"] == "route_not_found"


async def test_body_in_an_unknown_encoding_is_rejected(gateway: Gateway) -> None:
    response = await gateway.http.post(CHAT, json=chat(), headers={"content-encoding": "br"})

    assert error_of(response, 415)["code"] == "unsupported_content_encoding"


@pytest.mark.parametrize("app", [b"", b"x" * 129, b"caf\xc3\xa9", b"a\tb"])
async def test_application_must_be_short_printable_ascii(gateway: Gateway, app: bytes) -> None:
    response = await gateway.http.post(CHAT, json=chat(), headers={b"x-app-id": app})

    assert error_of(response, 400)["param"] == "X-App-Id"


@pytest.mark.parametrize("path", ["/admin/stats", "/admin/stats?app=x"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {ADMIN_KEY}"},
        {"x-api-key": SECRET},
        {b"authorization": "Bearer schlüssel".encode()},
    ],
    ids=["none", "wrong", "empty", "scheme", "x-api-key", "umlaut"],
)
async def test_admin_routes_require_the_admin_key(gateway: Gateway, path: str, headers: Any) -> None:
    response = await gateway.http.get(path, headers=headers)

    assert error_of(response, 401)["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"


async def test_missing_admin_key_is_created_and_stored_for_its_owner_only(
    start_gateway: StartGateway, simulated_engine: Engine, tmp_path: Path
) -> None:
    gateway = await start_gateway(simulated_engine.backend(), auth={"admin_key": None})
    kept = tmp_path / "admin_key"

    for key in (ADMIN_KEY, "None", "null"):
        headers = {"authorization": f"Bearer {key}"}
        assert error_of(await gateway.http.get("/admin/stats", headers=headers), 401)["type"] == "authentication_error"
    headers = {"authorization": f"Bearer {kept.read_text().strip()}"}
    assert (await gateway.http.get("/admin/stats", headers=headers)).status_code == 200
    assert kept.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", ""])
async def test_stats_since_an_invalid_time_are_rejected(gateway: Gateway, since: str) -> None:
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    response = await gateway.http.get("/admin/stats", params={"since": since}, headers=headers)

    assert error_of(response, 400)["param"] == "since"


@pytest_asyncio.fixture(loop_scope="session")
async def keyed(
    start_gateway: StartGateway, simulated_engine: Engine, database_url: str
) -> AsyncIterator[tuple[Gateway, KeyStore]]:
    """A gateway that requires keys, and its database."""
    engine = create_database_engine(database_url, pool_size=1)
    yield await start_gateway(simulated_engine.backend(), auth={"mode": "keys"}), KeyStore(engine)
    await engine.dispose()


async def test_key_determines_the_application_regardless_of_the_header(
    keyed: tuple[Gateway, KeyStore], app: str
) -> None:
    gateway, keys = keyed
    key, _ = await keys.create(app)
    async with gateway.sdk("another-application", api_key=key) as sdk:
        await sdk.chat.completions.create(**chat())
        assert [model.id async for model in sdk.models.list()] == [MODEL]

    await gateway.wait_for_totals(app, ok=1)
    assert [entry["app"] for entry in (await gateway.stats())["apps"]] == [app]


async def test_every_route_requires_a_valid_key(keyed: tuple[Gateway, KeyStore], app: str) -> None:
    gateway, keys = keyed
    revoked, kept = await keys.create(app)
    assert await keys.revoke(kept.id)

    for headers in (
        {},
        {"authorization": "Bearer"},
        *({"authorization": f"Bearer {key}"} for key in (SECRET, revoked)),
    ):
        for path, body in ((CHAT, chat()), (COMPLETIONS, completion()), (CHAT, {"model": 7})):
            response = await gateway.http.post(path, json=body, headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            assert SECRET not in response.text
        assert error_of(await gateway.http.get("/v1/models", headers=headers), 401)["type"] == "authentication_error"
    async with gateway.sdk(api_key=revoked) as sdk:
        with pytest.raises(openai.AuthenticationError):
            await sdk.chat.completions.create(**chat())
    assert (await gateway.stats())["totals"]["requests"] == 0
