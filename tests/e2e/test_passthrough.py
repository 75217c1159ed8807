"""Requests that are no generations: authenticated, sent to a backend of their model, unchanged and not recorded."""

import asyncio
import json
from typing import Any

import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from tests.e2e.conftest import SIMULATED, Served, StartEngine, StartGateway
from tests.e2e.engines import MODEL, Engine, Received, whole
from tests.e2e.gateway import Gateway, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

BODY = b'{ "model":"tiny" , "input": ["caf\\u00e9", 1.50], "unheard_of": null }'
ANSWER = b'{"object":"list" , "data":[{"embedding":[0.10,-1e-3],"index":0}],"model":"tiny","usage":{"prompt_tokens":2}}'
SOUND = bytes(range(256)) * 400
FORM = "multipart/form-data; boundary=XX"
SPOKEN = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    + SOUND
    + b'\r\n--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--XX--\r\n'
)

JSON_PATHS = [
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v1/score",
    "/score",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
]


async def answer_embeddings(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(whole(ANSWER))


async def counted(gateway: Gateway, path: str, status: str) -> None:
    """Wait until the metrics have the request. History must have nothing of it."""
    await until(gateway.shows("magnus_requests_total", 1, route=path, status=status), f"{path} counts as {status}")
    assert (await gateway.stats())["apps"] == []


@pytest.mark.parametrize("path", JSON_PATHS)
async def test_request_and_answer_are_forwarded_byte_for_byte(served_by: Served, path: str) -> None:
    gateway, fake = served_by(answer_embeddings)
    headers = {"authorization": "Bearer the-callers-key", "x-request-id": "req-1"}
    response = await gateway.http.post(f"{path}?truncate=true", content=BODY, headers=headers)

    assert (response.status_code, response.content) == (200, ANSWER)
    assert (response.headers["x-magnus-backend"], response.headers["x-request-id"]) == ("fake", "req-1")
    assert int(response.headers["content-length"]) == len(ANSWER)
    (received,) = fake.received
    assert (received.path, received.body) == (f"{path}?truncate=true", BODY)
    assert received.headers["authorization"] == "Bearer the-engines-own-key"
    await counted(gateway, path, "ok")


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_form_is_forwarded_byte_for_byte(
    start_engine: StartEngine, start_gateway: StartGateway, path: str
) -> None:
    fake = await start_engine(answer_embeddings)
    other = await start_engine(answer_embeddings)
    gateway = await start_gateway(other.backend("a", models=["other"]), fake.backend("b"))
    response = await gateway.http.post(path, content=SPOKEN, headers={"content-type": FORM})

    assert (response.status_code, response.headers["x-magnus-backend"]) == (200, "b")
    (received,) = fake.received
    assert (received.body, received.headers["content-type"]) == (SPOKEN, FORM)
    await counted(gateway, path, "ok")


async def test_audio_is_returned_unchanged(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: {len(SOUND)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + SOUND)

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    response = await gateway.http.post("/v1/audio/speech", json={"model": MODEL, "input": "hi"})

    assert (response.headers["content-type"], response.content) == ("audio/wav", SOUND)


async def test_truncated_answer_closes_the_connection_early(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
        head = (
            f"HTTP/1.1 200 OK\r\ncontent-type: audio/wav\r\ncontent-length: {len(SOUND)}\r\nconnection: close\r\n\r\n"
        )
        writer.write(head.encode() + SOUND[:50_000])

    fake = await start_engine(respond)
    gateway = await start_gateway(fake.backend("fake"))
    reader, writer = await asyncio.open_connection(*gateway.url.removeprefix("http://").split(":"))
    body = b'{"model":"tiny","input":"hi"}'
    writer.write(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    _, _, got = (await reader.read(-1)).partition(b"\r\n\r\n")
    writer.close()

    assert SOUND.startswith(got)
    assert len(got) <= 50_000
    await counted(gateway, "/v1/audio/speech", "failed")


async def test_backend_with_the_fewest_requests_is_chosen(
    start_engine: StartEngine, start_gateway: StartGateway
) -> None:
    go = asyncio.Event()

    async def hold(_: Received, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(whole(ANSWER))

    engines = [await start_engine(hold) for _ in range(3)]
    gateway = await start_gateway(*[engine.backend(f"gpu-{n}") for n, engine in enumerate(engines)])
    tasks = [asyncio.create_task(gateway.http.post("/v1/embeddings", content=BODY)) for _ in range(6)]

    async def all_sent() -> bool:
        return sum(len(engine.received) for engine in engines) == 6

    await until(all_sent, "the engines have all requests")
    assert [len(engine.received) for engine in engines] == [2, 2, 2]
    go.set()
    assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}


async def test_failure_is_retried_on_another_backend(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    async def hang_up(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    bad, good = await start_engine(hang_up), await start_engine(answer_embeddings)
    gateway = await start_gateway(bad.backend("a"), good.backend("b"))
    response = await gateway.http.post("/v1/embeddings", content=BODY)

    assert (response.status_code, response.headers["x-magnus-backend"]) == (200, "b")
    assert await gateway.metric("magnus_backend_failures_total", backend="a") == 1


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"content": b"no"}, 400, "invalid_request"),
        ({"json": {"model": "nope"}}, 404, "model_not_found"),
        ({"content": SPOKEN[:-20], "headers": {"content-type": FORM}}, 400, "invalid_request"),
        ({"content": b" " * 200_001}, 413, "request_too_large"),
    ],
)
async def test_rejections_are_openais_errors(
    start_engine: StartEngine, start_gateway: StartGateway, sent: dict[str, Any], status: int, code: str
) -> None:
    fake = await start_engine(answer_embeddings)
    gateway = await start_gateway(fake.backend("fake"), server={"max_body_bytes": 200_000})
    response = await gateway.http.post("/v1/embeddings", **sent)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert fake.received == []
    await counted(gateway, "/v1/embeddings", "rejected")


async def test_key_is_required(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    fake = await start_engine(answer_embeddings)
    gateway = await start_gateway(fake.backend("fake"), auth={"mode": "keys"})

    assert (await gateway.http.post("/v1/embeddings", content=BODY)).status_code == 401
    assert fake.received == []


async def test_rejection_by_the_engine_is_passed_on(engine: Engine, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(engine.backend())
    response = await gateway.http.post("/v1/embeddings", content=BODY)

    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Not Found"


async def test_tokenize_and_detokenize_reach_the_engine(engine: Engine, start_gateway: StartGateway) -> None:
    gateway = await start_gateway(engine.backend())
    for named in ({"model": MODEL}, {}):
        tokens = (await gateway.http.post("/tokenize", json={"prompt": "hello there", **named})).json()
        assert tokens["count"] == len(tokens["tokens"]) > 0
        back = await gateway.http.post("/detokenize", json={"tokens": tokens["tokens"], **named})
        assert set(back.json()) == {"prompt"}


async def test_model_is_required_if_there_are_several(start_gateway: StartGateway) -> None:
    async with (
        listening(SIMULATED) as url,
        listening(EngineConfig(model="other", kv_tokens=4096, max_model_len=2048)) as other_url,
    ):
        gateway = await start_gateway(Engine(url).backend("a"), Engine(other_url).backend("b"))
        unnamed = await gateway.http.post("/tokenize", json={"prompt": "hello"})
        named = await gateway.http.post("/tokenize", json={"prompt": "hello", "model": "other"})

    assert (unnamed.status_code, json.loads(unnamed.content)["error"]["param"]) == (400, "model")
    assert (named.status_code, named.headers["x-magnus-backend"]) == (200, "b")
