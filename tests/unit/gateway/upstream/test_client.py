import asyncio
from contextlib import aclosing
from typing import Any

import httpx2
import pytest

from gateway.errors import (
    BackendError,
    BackendFull,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    ClientTooSlow,
    ProtocolError,
)
from gateway.upstream import client as upstream
from gateway.upstream.client import Timeouts, UpstreamClient, UpstreamRequest
from tests.unit.gateway.fake_engines import TOKEN, Answer, FakeBackend, FakeTransport, whole

GPU = FakeBackend("gpu", api_key="sesame")
REQUEST = UpstreamRequest(
    "/v1/completions?x=1", {"content-type": "application/json", "authorization": "Bearer of-the-client"}, b"{}"
)
PATIENCE = Timeouts(connect_s=5, first_byte_s=60, idle_s=10)


async def read(transport, *, pause_s=0.0, backend=GPU, patience=PATIENCE):
    """Read the answer as a client does that takes `pause_s` for each chunk."""
    chunks = []
    async with UpstreamClient(transport, patience).send(backend, REQUEST) as reply, aclosing(reply.chunks()) as body:
        async for chunk in body:
            chunks.append(chunk)
            await asyncio.sleep(pause_s)
    return b"".join(chunks)


async def test_call_is_sent_with_the_key_of_the_engine():
    transport = FakeTransport(gpu=[whole()])
    await read(transport)
    ((_, request),) = transport.sent
    assert (request.method, str(request.url)) == ("POST", "http://gpu/v1/completions?x=1")
    assert request.headers["authorization"] == "Bearer sesame"
    assert request.headers["content-type"] == "application/json"
    assert await request.aread() == b"{}"


async def test_only_so_long_is_waited_for_a_connection():
    transport = FakeTransport(gpu=[whole()])
    await read(transport)
    assert transport.sent[0][1].extensions["timeout"]["connect"] == PATIENCE.connect_s


@pytest.mark.parametrize(
    ("kind", "is_stream"), [("text/event-stream; charset=utf-8", True), ("application/json", False)]
)
async def test_the_engine_says_what_its_answer_is(kind, is_stream):
    transport = FakeTransport(gpu=[Answer(TOKEN, kind=kind, status=201)])
    async with UpstreamClient(transport, PATIENCE).send(GPU, REQUEST) as reply:
        assert (reply.status, reply.content_type, reply.is_stream) == (201, kind, is_stream)
    assert transport.all_closed


async def test_an_answer_is_read_and_closed():
    transport = FakeTransport(gpu=[Answer(b"a", b"b")])
    assert await read(transport) == b"ab"
    assert transport.all_closed


async def test_unfinished_answer_is_closed():
    transport = FakeTransport(gpu=[Answer(TOKEN, TOKEN)])
    with pytest.raises(ZeroDivisionError):
        async with UpstreamClient(transport, PATIENCE).send(GPU, REQUEST):
            raise ZeroDivisionError
    assert transport.all_closed


async def test_a_reader_that_is_cancelled_closes_the_answer():
    transport = FakeTransport(gpu=[Answer(TOKEN, 5.0, TOKEN)])
    reading = asyncio.create_task(read(transport))
    await asyncio.sleep(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert transport.all_closed


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        httpx2.RemoteProtocolError("not HTTP"),
        ConnectionResetError(104, "reset by peer"),
    ],
)
async def test_a_broken_way_to_the_engine_is_one_error(error):
    for script in ([error], [Answer(TOKEN, error)]):
        transport = FakeTransport(gpu=list(script))
        with pytest.raises(BackendUnavailable) as failure:
            await read(transport)
        assert failure.value.__cause__ is error
        assert transport.all_closed


async def test_an_engine_that_takes_no_connection_is_silent_and_not_broken():
    with pytest.raises(BackendTimeout):
        await read(FakeTransport(gpu=[httpx2.ConnectTimeout("slow")]))


@pytest.mark.parametrize("script", [[61.0, Answer(TOKEN)], [Answer(61.0, TOKEN)], [59.0, Answer(2.0, TOKEN)]])
async def test_an_engine_that_does_not_begin_in_time_is_given_up(script):
    transport = FakeTransport(gpu=script)
    with pytest.raises(BackendTimeout):
        await read(transport)
    assert asyncio.get_running_loop().time() == pytest.approx(PATIENCE.first_byte_s)
    assert transport.all_closed


async def test_an_engine_may_take_long_to_begin_and_then_must_go_on():
    with pytest.raises(BackendTimeout):
        await read(FakeTransport(gpu=[50.0, Answer(TOKEN, 9.0, TOKEN, 11.0, TOKEN)]))
    assert asyncio.get_running_loop().time() == pytest.approx(50 + 9 + 10)


async def test_a_long_answer_without_silence_is_fine():
    assert await read(FakeTransport(gpu=[Answer(*(9.0, TOKEN) * 50)])) == TOKEN * 50


async def test_a_client_that_reads_slowly_is_no_silence_of_the_engine():
    assert await read(FakeTransport(gpu=[Answer(TOKEN, TOKEN, TOKEN)]), pause_s=100.0) == TOKEN * 3


async def test_slow_client_after_the_last_byte_is_no_timeout_of_the_engine():
    async with UpstreamClient(FakeTransport(gpu=[whole()]), PATIENCE).send(GPU, REQUEST) as reply:
        await reply.read()
        await asyncio.sleep(100)
    assert asyncio.get_running_loop().time() == pytest.approx(100)


@pytest.mark.parametrize(
    ("script", "pause_s", "error"),
    [
        ([Answer(*(3.0, TOKEN) * 50)], 0.0, BackendTimeout),
        ([1e6], 0.0, BackendTimeout),
        ([Answer(TOKEN, TOKEN)], 100.0, ClientTooSlow),
    ],
    ids=["slow engine", "silent engine", "slow client"],
)
async def test_total_timeout_names_the_slow_side(script, pause_s, error):
    with pytest.raises(error):
        await read(FakeTransport(gpu=script), pause_s=pause_s, patience=Timeouts(5, 1e9, 10, total_s=30))
    assert asyncio.get_running_loop().time() == pytest.approx(30)


@pytest.mark.parametrize(
    ("own", "script", "at_s"),
    [
        ({"first_byte_timeout_s": 7.0}, [8.0, Answer(TOKEN)], 7),
        ({"idle_timeout_s": 3.0}, [Answer(TOKEN, 2.0, TOKEN, 4.0, TOKEN)], 5),
        ({"total_timeout_s": 20.0}, [Answer(*(3.0, TOKEN) * 50)], 20),
        ({"first_byte_timeout_s": 90.0}, [95.0, Answer(TOKEN)], 90),
    ],
    ids=["first byte", "idle", "total", "longer than the others'"],
)
async def test_timeouts_of_a_backend_override_the_defaults(own, script, at_s):
    with pytest.raises(BackendTimeout):
        await read(FakeTransport(gpu=script), backend=FakeBackend("gpu", **own))
    assert asyncio.get_running_loop().time() == pytest.approx(at_s)


async def test_a_cancellation_when_patience_ends_stays_a_cancellation():
    reading = asyncio.create_task(read(FakeTransport(gpu=[61.0])))
    asyncio.get_running_loop().call_at(PATIENCE.first_byte_s, reading.cancel)
    await asyncio.wait([reading])
    assert reading.cancelled() or isinstance(reading.exception(), BackendTimeout)
    assert asyncio.current_task().cancelling() == 0


async def test_patience_leaves_nothing_of_its_cancellation():
    with pytest.raises(BackendTimeout):
        await read(FakeTransport(gpu=[61.0]))
    assert asyncio.current_task().cancelling() == 0


async def test_rejection_by_the_engine_keeps_its_body():
    body = b'{"error": {"message": "too long", "type": "BadRequestError", "param": "prompt", "code": 400}}'
    transport = FakeTransport(gpu=[whole(body, status=400)])
    with pytest.raises(BackendRefused) as refusal:
        await read(transport)
    error = refusal.value
    assert (error.message, error.type, error.param, error.code) == ("too long", "BadRequestError", "prompt", 400)
    assert error.status == 400
    assert transport.all_closed


async def test_a_full_queue_is_no_refusal():
    transport = FakeTransport(gpu=[whole(b'{"error": "the queue is full"}', status=503)])
    with pytest.raises(BackendFull):
        await read(transport)
    assert transport.all_closed


async def test_an_endless_answer_is_not_held_in_memory(monkeypatch):
    monkeypatch.setattr(upstream, "MAX_ANSWER_BYTES", 100)
    transport = FakeTransport(gpu=[whole(b"x" * 60), Answer(b"x" * 60, b"x" * 60, b"x" * 60, kind="application/json")])
    async with UpstreamClient(transport, PATIENCE).send(GPU, REQUEST) as reply:
        assert len(await reply.read()) == 60
    with pytest.raises(ProtocolError, match="over 100 bytes"):
        async with UpstreamClient(transport, PATIENCE).send(GPU, REQUEST) as reply:
            await reply.read()
    assert transport.all_closed


async def test_errors_contain_no_key():
    scripts: list[Any] = [[httpx2.ConnectError("refused")], [whole(b"no", status=500)], [61.0]]
    for script in scripts:
        with pytest.raises(BackendError) as failure:
            await read(FakeTransport(gpu=script))
        assert "sesame" not in f"{failure.value!s} {failure.value!r}"
