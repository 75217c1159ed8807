from collections.abc import AsyncIterator

import httpx2
import pytest

from backends.base import BackendSpec, BackendUnreachableError
from backends.http import MAX_PAGE_BYTES, Endpoint, StatusError

SPEC = BackendSpec(name="gpu-0", kind="vllm", url="http://gpu-0:8000/", api_key="sesame")


class Body(httpx2.AsyncByteStream):
    """A body that counts the bytes that were read, and records whether it was closed."""

    def __init__(self, *chunks: bytes, then: Exception | None = None) -> None:
        self.chunks = chunks
        self.then = then
        self.read_bytes = 0
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            self.read_bytes += len(chunk)
            yield chunk
        if self.then is not None:
            raise self.then

    async def aclose(self) -> None:
        self.closed = True


def answering(body: Body, status: int = 200) -> Endpoint:
    return Endpoint(SPEC, httpx2.MockTransport(lambda _: httpx2.Response(status, stream=body)), 1.0)


def failing(error: Exception) -> Endpoint:
    def fail(_: httpx2.Request) -> httpx2.Response:
        raise error

    return Endpoint(SPEC, httpx2.MockTransport(fail), 1.0)


async def test_a_page_is_read_whole_and_closed():
    body = Body(b"jobs ", b"1\n")
    assert await answering(body).get("/metrics") == b"jobs 1\n"
    assert body.closed


async def test_an_endless_page_is_aborted_and_closed():
    body = Body(*[b" " * (MAX_PAGE_BYTES // 2)] * 9)
    with pytest.raises(BackendUnreachableError, match="'gpu-0': GET /metrics: the page is larger than"):
        await answering(body).get("/metrics")
    assert body.closed
    assert body.read_bytes < 2 * MAX_PAGE_BYTES


async def test_an_error_status_is_reported_and_the_body_closed():
    body = Body(b"no")
    with pytest.raises(StatusError, match="'gpu-0': GET /metrics: status 404") as refusal:
        await answering(body, 404).get("/metrics")
    assert refusal.value.status == 404
    assert body.closed


async def test_an_interrupted_page_is_an_error_and_closed():
    body = Body(b"jobs", then=httpx2.ReadError("connection lost"))
    with pytest.raises(BackendUnreachableError, match="'gpu-0': GET /metrics: connection lost"):
        await answering(body).get("/metrics")
    assert body.closed


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (httpx2.ConnectError("no route to host"), "no route to host"),
        (httpx2.ReadTimeout(""), "ReadTimeout"),
        (httpx2.DecodingError("not gzip"), "not gzip"),
        (httpx2.RemoteProtocolError("not\n  HTTP"), "not HTTP"),
        (ConnectionResetError(104, "reset by peer"), "reset by peer"),
        (TimeoutError(), "no answer within 1 s"),
    ],
)
async def test_every_transport_error_becomes_one_type_with_its_cause(error: Exception, cause: str):
    with pytest.raises(BackendUnreachableError, match=f"'gpu-0': GET /info: .*{cause}") as failure:
        await failing(error).get("/info")
    assert failure.value.__cause__ is error


async def test_the_key_is_never_shown():
    with pytest.raises(BackendUnreachableError) as failure:
        await failing(httpx2.LocalProtocolError("illegal header value b'Bearer sesame'")).get("/info")
    assert "sesame" not in str(failure.value)


async def test_a_programming_error_is_not_caught():
    with pytest.raises(ZeroDivisionError):
        await failing(ZeroDivisionError()).attempt("/info")


def test_a_page_of_the_wrong_type_is_an_error():
    with pytest.raises(BackendUnreachableError, match="'gpu-0': GET /info: Expected `array`"):
        answering(Body()).decode("/info", b"{}", list)
