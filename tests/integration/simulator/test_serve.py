"""`serve` in its own process: how it prints its address, and how it ends."""

import signal
import subprocess
import sys
from typing import Any

import httpx2
import pytest

SCRIPT = """
from backends.simulator.config import EngineConfig
from backends.simulator.server import serve
serve(EngineConfig(), port=0, ready=lambda url: print(url, flush=True), exit_with_parent=True)
"""


@pytest.fixture
def engine():
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], text=True, **pipes) as process:
        yield process
        process.kill()


def streaming(url):
    request = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    return httpx2.stream("POST", f"{url}/v1/chat/completions", json=request, timeout=20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_the_server_during_a_stream(engine, number):
    url = engine.stdout.readline().strip()
    with streaming(url) as answer:
        chunks = answer.iter_bytes()
        next(chunks)

        engine.send_signal(number)

        assert engine.wait(timeout=20) == 0
        with pytest.raises(httpx2.RemoteProtocolError):
            list(chunks)


def test_end_of_stdin_stops_the_server(engine):
    url = engine.stdout.readline().strip()
    assert httpx2.get(f"{url}/health", timeout=20).status_code == 200

    engine.stdin.close()

    assert engine.wait(timeout=20) == 0
