"""Aliases of models, and the limits that the settings give to their requests."""

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.conftest import StartEngine, StartGateway
from tests.e2e.engines import MODEL, FakeEngine, Received, answer
from tests.e2e.gateway import Gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

MODELS = {"aliases": {"gpt-4o-mini": MODEL, "gone": "nobody-s"}, "defaults": {MODEL: {"max_tokens": 77}}}


async def respond(_: Received, writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


async def sent(gateway: Gateway, engine: FakeEngine, **fields: Any) -> dict[str, Any]:
    """Send a request, and return what the engine received."""
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    response = await gateway.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return json.loads(engine.received[-1].body)


async def test_alias_is_sent_as_its_model(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    engine = await start_engine(respond)
    gateway = await start_gateway(engine.backend("gpu"), models=MODELS)

    got = await sent(gateway, engine, model="gpt-4o-mini", max_tokens=5, unknown={"x": 1})
    assert (got["model"], got["max_tokens"], got["unknown"]) == (MODEL, 5, {"x": 1})
    assert (await sent(gateway, engine, model="gpt-4o-mini"))["max_tokens"] == 77
    assert (await sent(gateway, engine, model=MODEL))["max_tokens"] == 77
    assert "max_tokens" not in await sent(gateway, engine, model=MODEL, max_completion_tokens=9)


async def test_aliases_of_served_models_are_listed(start_engine: StartEngine, start_gateway: StartGateway) -> None:
    gateway = await start_gateway((await start_engine(respond)).backend("gpu"), models=MODELS)
    listed = (await gateway.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == [MODEL, "gpt-4o-mini"]
    assert (await gateway.http.get("/v1/models/gpt-4o-mini")).json()["id"] == "gpt-4o-mini"
    assert (await gateway.http.get("/v1/models/gone")).status_code == 404
    body = {"model": "gone", "messages": [{"role": "user", "content": "x"}]}
    assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 404
