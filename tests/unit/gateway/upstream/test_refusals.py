"""Statuses and headers of an engine that are not for the client, and those that are."""

import httpx2
import pytest

from backends.base import BackendUnreachableError
from backends.http import Endpoint
from gateway.errors import BackendRedirects, BackendRefused, CredentialsRefused
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from tests.unit.gateway.fake_engines import FakeBackend

GPU = FakeBackend("gpu", api_key="sesame")
REQUEST = UpstreamRequest("/v1/embeddings", {}, b"{}")


class Body(httpx2.AsyncByteStream):
    async def __aiter__(self):
        yield b'{"error": {"message": "no"}}'


def transport(status, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.MockTransport(lambda _: httpx2.Response(status, headers=named, stream=Body()))


async def send(status, **headers):
    client = UpstreamClient(transport(status, **headers), Timeouts(connect_s=5, first_byte_s=60, idle_s=10))
    async with client.send(GPU, REQUEST) as response:
        return response.passed_headers


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_an_error_of_the_gateway(status):
    with pytest.raises(CredentialsRefused, match=str(status)) as refusal:
        await send(status, www_authenticate="Bearer")
    assert (refusal.value.status, refusal.value.code, refusal.value.headers) == (502, "backend_credentials_refused", {})


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirect_is_an_error_that_names_its_target_without_secrets(status):
    with pytest.raises(BackendRedirects, match="https://other/v1/embeddings") as refusal:
        await send(status, location="https://me:secret@other/v1/embeddings?key=secret")
    assert (refusal.value.status, "secret" in refusal.value.message) == (502, False)


async def test_headers_that_the_answer_needs_are_passed_and_others_are_not():
    needed = {"content_encoding": "gzip", "content_disposition": "attachment; filename=a.mp3", "retry_after": "7"}
    passed = await send(200, server="uvicorn", set_cookie="a=b", x_internal="host", **needed)
    assert passed == {name.replace("_", "-"): value for name, value in needed.items()}


async def test_retry_after_of_a_refusal_is_passed():
    with pytest.raises(BackendRefused) as refusal:
        await send(429, retry_after="7", server="uvicorn")
    assert refusal.value.headers == {"retry-after": "7"}


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "refuses the credentials; check api_key"),
        (404, "no such page; check url"),
        (308, "redirects to /v1/models/"),
    ],
)
async def test_failed_scrape_says_what_to_check(status, reason):
    with pytest.raises(BackendUnreachableError, match=reason):
        await Endpoint(GPU.spec, transport(status, location="/v1/models/?a=b"), 1.0).get("/v1/models")
