import asyncio
import gzip
from typing import Any

import pytest

from gateway.api.asgi import (
    DRAIN_FACTOR,
    SentWhole,
    WhileConnected,
    headers_of,
    read_body,
    respond,
    start,
)
from gateway.api.body_budget import BodyBudget
from gateway.errors import BodyTimeout, BodyTooLarge, ClientGone, TooManyBodyBytes

GONE = {"type": "http.disconnect"}


class Receive:
    """A client that sends these messages with pauses in seconds between them, and then nothing more."""

    def __init__(self, *script):
        self.script = list(script)
        self.taken = 0

    async def __call__(self):
        while self.script:
            part = self.script.pop(0)
            if isinstance(part, dict):
                self.taken += 1
                return part
            await asyncio.sleep(part)
        await asyncio.sleep(1e9)
        raise AssertionError("waited for ever")


class Sent(list):
    """Records the messages that the application sends."""

    async def __call__(self, message):
        self.append(message)


def part(body, *, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


def receiver_of(refusal) -> Any:
    return refusal.value.receive


async def read(*script, max_bytes=100, silence_s=10.0, encoding=""):
    receive = Receive(*script)
    try:
        return await read_body(receive, max_bytes=max_bytes, silence_s=silence_s, encoding=encoding), receive
    except Exception as error:
        failed: Any = error
        failed.receive = receive
        raise


@pytest.mark.parametrize(
    "script",
    [
        [part(b"abc", more=False)],
        [part(b"a"), part(b""), part(b"bc"), part(b"", more=False)],
        [part(b"a"), {"type": "http.request", "body": b"bc"}],
        [part(b"abc"), {"type": "http.request"}],
    ],
)
async def test_a_body_is_read_in_parts(script):
    body, _ = await read(*script)
    assert body == b"abc"


async def test_body_may_be_as_large_as_the_limit():
    body, _ = await read(part(b"x" * 60), part(b"x" * 40, more=False))
    assert len(body) == 100


async def test_a_body_over_the_limit_is_rejected_when_it_is_complete():
    with pytest.raises(BodyTooLarge, match="larger than 100 bytes") as refusal:
        await read(part(b"x" * 100), part(b"x"), part(b"", more=False))
    assert receiver_of(refusal).script == []


async def test_a_body_far_over_the_limit_is_not_read_to_its_end():
    with pytest.raises(BodyTooLarge) as refusal:
        await read(*[part(b"x" * 50)] * 1000)
    assert receiver_of(refusal).taken * 50 <= DRAIN_FACTOR * 100 + 50


async def test_a_client_that_sends_nothing_times_out():
    with pytest.raises(BodyTimeout, match="10 s"):
        await read(part(b"a"), 9.0, part(b"b"), 11.0, part(b"c", more=False))
    assert asyncio.get_running_loop().time() == pytest.approx(19)


async def test_a_slow_client_does_not_time_out():
    body, _ = await read(*[9.0, part(b"a")] * 6, part(b"", more=False))
    assert len(body) == 6


async def test_a_client_that_disconnects_during_its_body_is_gone():
    with pytest.raises(ClientGone):
        await read(part(b"a"), GONE)


async def test_a_compressed_body_is_decompressed_and_its_result_is_limited():
    body, _ = await read(part(gzip.compress(b"x" * 100), more=False), encoding="gzip")
    assert body == b"x" * 100
    with pytest.raises(BodyTooLarge, match="decompressed"):
        await read(part(gzip.compress(b"x" * 101), more=False), encoding="gzip")


def test_header_names_are_lower_case_and_the_last_value_wins():
    scope: Any = {"headers": [(b"x-a", b"1"), (b"x-b", "ü".encode("latin-1")), (b"x-a", b"2")]}
    assert headers_of(scope) == {"x-a": "2", "x-b": "ü"}


async def test_a_response_has_a_content_length():
    sent = Sent()
    await respond(sent, 404, {"x-a": "1"}, b"no")
    assert sent == [
        {"type": "http.response.start", "status": 404, "headers": [(b"x-a", b"1"), (b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"no", "more_body": False},
    ]


async def test_a_stream_has_no_content_length():
    sent = Sent()
    await start(sent, 200, {"x-a": "1"})
    assert sent == [{"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]}]


async def test_an_http_1_0_client_gets_a_stream_in_one_piece():
    sent = Sent()
    whole = SentWhole(sent)
    await start(whole, 200, {"x-a": "1"})
    await whole({"type": "http.response.body", "body": b"a", "more_body": True})
    await whole({"type": "http.response.body", "body": b"b", "more_body": True})
    assert sent == []
    await whole({"type": "http.response.body", "body": b"", "more_body": False})
    assert sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1"), (b"content-length", b"2")]},
        {"type": "http.response.body", "body": b"ab", "more_body": False},
    ]


async def test_an_http_1_0_client_gets_one_content_length():
    sent = Sent()
    await respond(SentWhole(sent), 404, {"x-a": "1"}, b"no")
    assert sent[0]["headers"] == [(b"x-a", b"1"), (b"content-length", b"2")]


# A client that disconnects


async def test_work_that_ends_before_a_disconnect_is_not_cancelled():
    async with WhileConnected(Receive(5.0, GONE)):
        await asyncio.sleep(1)
    await asyncio.sleep(10)
    assert asyncio.current_task().cancelling() == 0


async def test_a_disconnect_cancels_the_work():
    with pytest.raises(ClientGone):
        async with WhileConnected(Receive(5.0, GONE)):
            await asyncio.sleep(100)
    assert asyncio.get_running_loop().time() == pytest.approx(5)
    await asyncio.sleep(10)  # no trace of the cancellation is left
    assert asyncio.current_task().cancelling() == 0


async def test_other_messages_are_not_a_disconnect():
    async with WhileConnected(Receive(1.0, part(b"", more=False), 10.0, GONE)):
        await asyncio.sleep(5)


async def test_a_cancellation_from_outside_stays_a_cancellation():
    async def work():
        async with WhileConnected(Receive()):
            await asyncio.sleep(100)

    task = asyncio.create_task(work())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_from_outside_wins_over_an_earlier_disconnect():
    async def work():
        async with WhileConnected(Receive(5.0, GONE)):
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(10)  # the cancelled work takes its time, and the client disconnects meanwhile

    task = asyncio.create_task(work())
    await asyncio.sleep(4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_later_cancellation_from_outside_wins_over_a_disconnect():
    async def work():
        async with WhileConnected(Receive(5.0, GONE)):
            try:
                await asyncio.sleep(100)
            finally:
                await asyncio.sleep(10)

    task = asyncio.create_task(work())
    await asyncio.sleep(6)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_outside_is_not_a_disconnect():
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3), WhileConnected(Receive(5.0, GONE)):
            await asyncio.sleep(100)


async def test_a_timeout_inside_is_not_a_disconnect():
    with pytest.raises(TimeoutError):
        async with WhileConnected(Receive(5.0, GONE)), asyncio.timeout(3):
            await asyncio.sleep(100)


async def test_an_error_of_the_work_wins_over_a_disconnect():
    async def fail_when_cancelled():
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    with pytest.raises(ZeroDivisionError):
        async with WhileConnected(Receive(5.0, GONE)):
            await fail_when_cancelled()
    assert asyncio.current_task().cancelling() == 0


async def test_a_body_that_drips_ends_in_time():
    with pytest.raises(BodyTimeout, match="bytes a second"):
        await read(*[item for _ in range(10) for item in (9.0, part(b"x"))], part(b"", more=False))


async def test_a_large_body_may_take_longer():
    pieces = [item for _ in range(12) for item in (9.0, part(b"x" * 40_000))]
    body, _ = await read(*pieces, part(b"", more=False), max_bytes=1_000_000)
    assert len(body) == 480_000


async def test_bodies_of_all_requests_together_are_bounded():
    budget = BodyBudget(100)
    first, second, third = (budget.account(name) for name in ("a", "b", "c"))
    await read_body(Receive(part(b"x" * 50, more=False)), max_bytes=100, silence_s=1, account=first)
    await read_body(Receive(part(b"x" * 40, more=False)), max_bytes=100, silence_s=1, account=second)
    with pytest.raises(TooManyBodyBytes):
        await read_body(Receive(part(b"x" * 20, more=False)), max_bytes=100, silence_s=1, account=third)
    third.release()
    first.release()
    await read_body(Receive(part(b"x" * 20, more=False)), max_bytes=100, silence_s=1, account=third)

    assert budget.held_bytes == 60


async def test_bodies_count_after_decompression_and_one_client_has_half():
    budget = BodyBudget(100_000)
    bomb = gzip.compress(b"x" * 60_000)
    account = budget.account("a")
    with pytest.raises(TooManyBodyBytes, match="Your requests"):
        await read_body(
            Receive(part(bomb, more=False)), max_bytes=90_000, silence_s=1, encoding="gzip", account=account
        )
    account.release()

    assert budget.held_bytes == 0
