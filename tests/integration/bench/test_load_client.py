import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from bench.load_client import LoadError, load_client
from bench.overhead.engine import CannedEngine, Connection
from bench.overhead.load import AnswerShape, ChatLoad, WrongAnswer
from bench.overhead.prompts import Prompt
from tests.polling import until

PROMPT = Prompt("You are a poet.", "Write: a poem?", "user-1")
STREAM = json.dumps({"stream": True, "max_tokens": 3}, separators=(",", ":")).encode()
HELD_STREAM = json.dumps({"stream": True, "max_tokens": 2, "seed": 600_000}, separators=(",", ":")).encode()


@asynccontextmanager
async def listening(protocol):
    """Serve a protocol on a free port; yield its URL and the connections that were made."""
    connections = []

    def connect():
        connections.append(protocol())
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


@asynccontextmanager
async def canned(engine=None):
    engine = engine or CannedEngine()
    async with listening(lambda: Connection(engine)) as listener, load_client(timeout_s=10.0) as client:
        yield client, *listener


class Reply(asyncio.Protocol):
    """Writes the given bytes for each received segment, and closes the connection."""

    def __init__(self, data):
        self.data = data

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(self.data)
        self.transport.close()


async def test_requests_in_turn_share_a_connection():
    async with canned() as (client, url, connections):
        for _ in range(3):
            assert (await client.timed_post(f"{url}/v1/chat/completions", b"{}", {})).status == 200
        assert len(connections) == 1


async def test_requests_at_once_have_a_connection_each():
    async with canned() as (client, url, connections):
        await asyncio.gather(*(client.timed_post(f"{url}/v1/chat/completions", STREAM, {}) for _ in range(4)))
        assert len(connections) == 4


async def test_stream_is_complete_and_its_first_byte_comes_before_its_last():
    async with canned() as (client, url, _):
        answer = await client.timed_post(f"{url}/v1/chat/completions", STREAM, {})
    assert answer.body.count(b'" word"') == 3
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert 0 < answer.ttft_s < answer.e2e_s


async def test_leaving_a_stream_aborts_it():
    engine = CannedEngine()
    async with canned(engine) as (client, url, _):
        async with client.post(f"{url}/v1/chat/completions", HELD_STREAM) as response:
            assert b'" word"' in await response.read_some()
            assert engine.running == 1
        await until(lambda: engine.running == 0)


async def test_get_returns_json():
    async with canned() as (client, url, _), client.get(f"{url}/v1/models") as response:
        assert (await response.json())["data"][0]["id"] == "canned"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort", b"no HTTP\r\n\r\n"])
async def test_incomplete_answer_is_an_error(data):
    async with listening(lambda: Reply(data)) as (url, _), load_client(timeout_s=10.0) as client:
        with pytest.raises(LoadError, match="closed the connection"):
            await client.timed_post(url, b"{}", {})


async def test_connection_that_the_server_closes_after_an_answer_is_not_used_again():
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    async with listening(lambda: Reply(reply)) as (url, connections), load_client(timeout_s=10.0) as client:
        for _ in range(2):
            assert (await client.timed_post(url, b"{}", {})).body == b"ok"
        assert len(connections) == 2


async def test_refused_connection_is_an_error():
    async with listening(asyncio.Protocol) as (url, _):
        pass
    async with load_client(timeout_s=10.0) as client:
        with pytest.raises(LoadError, match="cannot connect"):
            await client.timed_post(url, b"{}", {})


async def test_slow_answer_is_a_timeout():
    async with listening(asyncio.Protocol) as (url, _), load_client(timeout_s=0.01) as client:
        with pytest.raises(TimeoutError):
            await client.timed_post(url, b"{}", {})


async def test_closed_loop_sends_every_request_once():
    async with canned() as (client, url, connections):
        ttfts_s = await ChatLoad(client, url, "key", [PROMPT]).closed_loop(AnswerShape(), requests=20, at_once=4)
        assert len(ttfts_s) == 20
        assert len(connections) == 4


async def test_held_streams_are_open_until_the_block_ends():
    engine = CannedEngine()
    async with canned(engine) as (client, url, _):
        async with ChatLoad(client, url, "key", [PROMPT]).held_streams(5):
            assert engine.running == 5
        await until(lambda: engine.running == 0)


async def test_answer_that_is_not_the_canned_one_voids_the_measurement():
    reply = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
    async with listening(lambda: Reply(reply)) as (url, _), load_client(timeout_s=10.0) as client:
        with pytest.raises(WrongAnswer, match="status 503: busy"):
            await ChatLoad(client, url, "key", [PROMPT]).send(AnswerShape())
