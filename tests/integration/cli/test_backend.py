"""`magnus backend` with simulated engines, and a fake gateway that records its requests."""

import asyncio
import json
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from tests.backend_command import DEADLINE_S, command, free_port, installed_vllm, running
from tests.polling import wait_until

ADMIN_KEY = "the-gateways-admin-key"


class FakeGateway:
    """Answers like `/admin/backends`. `requests` contains (method, path, body) of each request."""

    def __init__(self):
        self.requests = []
        self.answers = {}
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length) or b"null")
                key = self.headers.get("authorization")
                gateway.requests.append((self.command, self.path, body))
                status, answer = gateway.answers.get(self.command, gateway.usual[self.command])
                if key != f"Bearer {ADMIN_KEY}":
                    status, answer = 401, {"error": {"code": "unauthorized", "message": "no"}}
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_DELETE = answer

            def log_message(self, *_):
                return

        self.usual = {"GET": (200, {"backends": []}), "POST": (201, {}), "PATCH": (200, {}), "DELETE": (202, {})}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def methods(self):
        return [method for method, _, _ in self.requests]


@pytest.fixture
def gateway():
    fake = FakeGateway()
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield fake
    fake.server.shutdown()
    thread.join()
    fake.server.server_close()


@pytest.fixture
def port():
    return free_port()


@pytest.fixture
def vllm(tmp_path):
    """The folder that contains the fake `vllm`."""
    with installed_vllm(tmp_path) as folder:
        yield folder


def registered_at(gateway, *arguments):
    return ("--gateway", gateway.url, "--admin-key", ADMIN_KEY, *arguments)


def test_engine_is_started_registered_and_removed(vllm, gateway, port):
    own = ("--port", port, "--name", "gpu-7", "--", "--max-model-len", "512")
    with running(vllm, *registered_at(gateway, *own)) as (process, url):
        healthy = httpx2.get(f"{url}/health", trust_env=False).status_code
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=DEADLINE_S) == 0

    entry = {"name": "gpu-7", "kind": "vllm", "url": f"http://127.0.0.1:{port}", "priority": True}
    assert (healthy, url) == (200, entry["url"])
    assert gateway.requests == [
        ("GET", "/admin/backends", None),
        ("POST", "/admin/backends", entry),
        ("DELETE", "/admin/backends/gpu-7", None),
    ]
    assert (vllm / "ended").exists()


def test_vllm_gets_the_gateways_and_the_operators_arguments(vllm, port):
    with running(vllm, "--port", port, "--max-queued", 40, "--", "--max-model-len", "512"):
        arguments = json.loads((vllm / "arguments.json").read_text())
    assert arguments == [
        *("serve", "tiny", "--host", "127.0.0.1", "--port", str(port)),
        *("--scheduling-policy", "priority", "--enable-prompt-tokens-details", "--enable-prefix-caching"),
        *("--max-num-queued-reqs", "40", "--max-model-len", "512"),
    ]


def test_running_requests_finish_before_the_engine_stops(vllm, gateway, port):
    body = {"model": "tiny", "prompt": "x", "max_tokens": 100, "ignore_eos": True}
    answers = []
    with running(vllm, *registered_at(gateway, "--port", port)) as (process, url):
        asking = threading.Thread(
            target=lambda: answers.append(httpx2.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False))
        )
        asking.start()
        wait_until(lambda: 'num_requests_running{engine="0",model_name="tiny"} 1' in page(url))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=DEADLINE_S) == 0
        asking.join()

    assert answers[0].json()["usage"]["completion_tokens"] == 100
    assert gateway.methods() == ["GET", "POST", "DELETE"]


def page(url):
    return httpx2.get(f"{url}/metrics", trust_env=False).text


def test_second_signal_stops_the_engine_at_once(vllm, port):
    body = {"model": "tiny", "prompt": "x", "max_tokens": 8000, "ignore_eos": True}
    started = time.monotonic()
    with running(vllm, "--port", port, "--drain-s", 600) as (process, url):

        def ask():
            with pytest.raises(httpx2.HTTPError):
                httpx2.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False).raise_for_status()

        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(lambda: 'num_requests_running{engine="0",model_name="tiny"} 1' in page(url))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=DEADLINE_S) == 0
        asking.join()
    assert time.monotonic() - started < DEADLINE_S


def test_crashed_engine_is_removed_and_its_exit_code_returned(vllm, gateway, port):
    with running(vllm, *registered_at(gateway, "--port", port, "--", "--die-after", "4")) as (process, _):
        assert process.wait(timeout=DEADLINE_S) == 9
        assert "vLLM has ended" in process.stderr.read()
    assert gateway.methods() == ["GET", "POST", "DELETE"]


def test_engine_that_does_not_start_is_never_registered(vllm, gateway, port):
    with command(vllm, *registered_at(gateway, "--port", port, "--", "--fail")) as process:
        assert process.wait(timeout=DEADLINE_S) == 7
    assert gateway.methods() == ["GET"]


def test_existing_entry_is_updated(vllm, gateway, port):
    gateway.answers["POST"] = (409, {"error": {"code": "backend_exists", "message": "there"}})
    with running(vllm, *registered_at(gateway, "--port", port, "--name", "gpu-7")) as (process, url):
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=DEADLINE_S)
    assert gateway.methods() == ["GET", "POST", "PATCH", "DELETE"]
    assert gateway.requests[2][1:] == ("/admin/backends/gpu-7", {"url": url, "priority": True})


def test_entry_of_the_settings_file_is_not_removed(vllm, gateway, port):
    gateway.answers["POST"] = (409, {"error": {"code": "backend_configured", "message": "there"}})
    with running(vllm, *registered_at(gateway, "--port", port)) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=DEADLINE_S) == 0
    assert gateway.methods() == ["GET", "POST"]


def test_engine_stops_when_the_gateway_refuses_it(vllm, gateway, port):
    gateway.answers["POST"] = (400, {"error": {"code": None, "message": "name: wrong"}})
    with command(vllm, *registered_at(gateway, "--port", port)) as process:
        assert process.wait(timeout=DEADLINE_S) == 1
        assert "name: wrong" in process.stderr.read()
    assert (vllm / "ended").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gateway", "http://127.0.0.1:1"), "--admin-key: required"),
        (("--gateway", "http://gateway.example", "--admin-key", "k"), "cannot reach 127.0.0.1"),
    ],
)
def test_wrong_options_give_one_line(vllm, port, arguments, words):
    with command(vllm, "--port", port, *arguments) as process:
        assert process.wait(timeout=DEADLINE_S) == 2
        said = process.stderr.read()
    assert words in said
    assert said.count("\n") == 1
    assert not (vllm / "arguments.json").exists()


def test_wrong_admin_key_is_reported_before_the_engine_starts(vllm, gateway, port):
    with command(vllm, "--gateway", gateway.url, "--admin-key", "wrong", "--port", port) as process:
        assert process.wait(timeout=DEADLINE_S) == 2
        assert "rejects this admin key" in process.stderr.read()
    assert not (vllm / "arguments.json").exists()


def test_port_in_use_is_reported(vllm, gateway):
    with command(vllm, "--port", gateway.server.server_address[1]) as process:
        assert process.wait(timeout=DEADLINE_S) == 2
        assert "is already in use" in process.stderr.read()


def test_missing_vllm_is_reported_with_the_install_command(tmp_path, port):
    with command(tmp_path, "--port", port) as process:
        assert process.wait(timeout=DEADLINE_S) == 1
        assert "magnus-gateway[vllm]" in process.stderr.read()


@pytest.fixture
async def tgi():
    async with listening(EngineConfig(kind="tgi", speed=100.0)) as url:
        yield url


async def test_running_tgi_is_registered_while_the_command_runs(tmp_path, gateway, tgi):
    def register():
        with running(tmp_path, *registered_at(gateway, "--url", tgi, "--name", "old"), kind=("tgi",)) as (process, url):
            process.send_signal(signal.SIGTERM)
            return process.wait(timeout=DEADLINE_S), url

    assert await asyncio.to_thread(register) == (0, tgi)
    assert gateway.requests == [
        ("GET", "/admin/backends", None),
        ("POST", "/admin/backends", {"name": "old", "kind": "tgi", "url": tgi}),
        ("DELETE", "/admin/backends/old", None),
    ]


def test_tgi_that_does_not_generate_is_never_registered(tmp_path, gateway):
    nowhere = registered_at(gateway, "--url", "http://127.0.0.1:1", "--ready-timeout-s", "2")
    with command(tmp_path, *nowhere, kind=("tgi",)) as process:
        assert process.wait(timeout=DEADLINE_S) == 1
        assert "did not generate text" in process.stderr.read()
    assert gateway.methods() == ["GET"]
