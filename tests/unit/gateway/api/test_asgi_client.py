import json
from typing import Any

import pytest

from gateway.api.asgi import AsgiClient
from gateway.errors import InvalidRequest, QueueFull
from gateway.protocol.api_formats import CHAT, MESSAGES
from tests.unit.gateway.request_context import request_context


def asgi_client(sent, api_format=CHAT, **headers):
    async def receive():
        raise AssertionError("nothing more to receive")

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope: Any = {"headers": pairs}
    client = AsgiClient(scope, receive, sent)
    client.context = request_context(1.0, api_format)
    return client


class Sent:
    """The ASGI messages of a response."""

    def __init__(self):
        self.messages = []

    async def __call__(self, message):
        self.messages.append(message)

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self):
        return b"".join(message["body"] for message in self.messages[1:])


@pytest.fixture
def sent():
    return Sent()


async def test_a_whole_answer_has_a_content_length(sent):
    client = asgi_client(sent)
    assert not client.started
    await client.start(200, "application/json", length=2)
    await client.send(b"{}", more=False)
    assert client.started
    assert sent.headers == {"content-type": "application/json", "x-request-id": "req-1", "content-length": "2"}
    assert (sent.body, sent.messages[-1]["more_body"]) == (b"{}", False)


async def test_a_stream_must_not_be_cached(sent):
    client = asgi_client(sent)
    await client.start(200, "text/event-stream", length=None)
    assert sent.headers["cache-control"] == "no-cache"
    assert "content-length" not in sent.headers


async def test_error_before_the_first_byte_is_a_response(sent):
    await asgi_client(sent).fail(InvalidRequest("no", param="n"))
    assert (sent.status, sent.headers["x-request-id"]) == (400, "req-1")
    assert json.loads(sent.body)["error"]["param"] == "n"
    assert int(sent.headers["content-length"]) == len(sent.body)


async def test_an_error_adds_its_own_headers(sent):
    await asgi_client(sent).fail(QueueFull("full", retry_after_s=7.0))
    assert (sent.status, sent.headers["retry-after"]) == (429, "7")


async def test_an_error_has_the_format_of_the_client_s_api(sent):
    await asgi_client(sent, MESSAGES).fail(InvalidRequest("no"))
    assert json.loads(sent.body) == {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}


async def test_error_closes_the_connection_of_a_client_that_expects_100_continue(sent):
    await asgi_client(sent, expect="100-continue").fail(InvalidRequest("no"))
    assert sent.headers["connection"] == "close"


async def test_an_error_during_another_kind_of_response_sends_nothing_more(sent):
    client = asgi_client(sent)
    await client.start(200, "audio/wav", length=100)
    await client.send(b"RIFF", more=True)
    await client.fail(InvalidRequest("no"))
    assert sent.body == b"RIFF"
    assert sent.messages[-1]["more_body"] is True


async def test_an_error_in_a_stream_is_its_last_event(sent):
    client = asgi_client(sent)
    await client.start(200, "text/event-stream", length=None)
    await client.send(b"data: {}\n\n", more=True)
    await client.fail(InvalidRequest("no"))
    assert sent.body.startswith(b'data: {}\n\ndata: {"error":')
    assert b"[DONE]" not in sent.body
    assert [message["more_body"] for message in sent.messages[1:]] == [True, False]
