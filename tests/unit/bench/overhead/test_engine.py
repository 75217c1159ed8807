import asyncio

from bench.overhead.engine import CannedEngine, Connection, metrics_page


class RecordingTransport(asyncio.Transport):
    def __init__(self):
        super().__init__()
        self.data = b""
        self.closed = False

    def write(self, data):
        self.data += bytes(data)

    def close(self):
        self.closed = True


def connected(engine=None):
    connection, transport = Connection(engine or CannedEngine()), RecordingTransport()
    connection.connection_made(transport)
    return connection, transport


def request(body, path="/v1/chat/completions"):
    head = f"POST {path} HTTP/1.1\r\nhost: engine\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)


def test_json_answer_has_the_announced_length():
    connection, transport = connected()
    connection.data_received(request(b'{"model":"canned"}'))
    head, _, body = transport.data.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert b'"completion_tokens":3' in body


def test_connection_answers_one_request_after_the_other():
    connection, transport = connected()
    one = request(b'{"model":"canned"}')
    connection.data_received(one + one[:20])
    connection.data_received(one[20:])
    assert transport.data.count(b"HTTP/1.1 200 OK") == 2


async def test_max_tokens_is_the_number_of_chunks_and_usage_follows_on_request():
    connection, transport = connected()
    connection.data_received(request(b'{"stream":true,"max_tokens":5,"stream_options":{"include_usage":true}}'))
    await turns(10)
    assert transport.data.count(b'" word"') == 5
    assert b'"completion_tokens":5' in transport.data
    assert transport.data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


async def test_stream_has_no_usage_without_the_option():
    connection, transport = connected()
    connection.data_received(request(b'{"stream":true,"max_tokens":2}'))
    await turns(5)
    assert b"[DONE]" in transport.data
    assert b'"usage"' not in transport.data


async def test_paced_stream_waits_after_each_chunk():
    engine = CannedEngine()
    connection, transport = connected(engine)
    connection.data_received(request(b'{"stream":true,"max_tokens":2,"seed":600000}'))
    await turns(10)
    assert transport.data.count(b'" word"') == 1
    assert engine.running == 1


async def test_disconnect_ends_the_stream():
    engine = CannedEngine()
    connection, transport = connected(engine)
    connection.data_received(request(b'{"stream":true,"max_tokens":100}'))
    connection.connection_lost(None)
    sent = transport.data
    await turns(5)
    assert engine.running == 0
    assert transport.data == sent


def test_bytes_that_are_not_http_close_the_connection():
    connection, transport = connected()
    connection.data_received(b"\x16\x03\x01 hello\r\n\r\n")
    assert transport.closed


def test_metrics_show_the_running_requests():
    assert b'vllm:num_requests_running{engine="0"} 7' in metrics_page(7)
