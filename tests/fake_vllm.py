"""A replacement for the `vllm` executable. It takes vLLM's arguments and runs a simulated engine.

It writes into its own folder: `arguments.json`; `requests.jsonl`, with one line per posted body; and `ended` after a
regular shutdown.
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import uvicorn

from backends.simulator.config import EngineConfig
from backends.simulator.server import create_app

ROOT = Path(__file__).parents[1]

EXECUTABLE = f"""#!{sys.executable}
import sys
from pathlib import Path

sys.path.insert(0, {str(ROOT)!r})
from tests.fake_vllm import main

main(Path(__file__).parent, sys.argv[1:])
"""


def main(folder, arguments):
    """Serve until SIGINT or SIGTERM. `--fail` exits at once; `--die-after S` crashes after S seconds."""
    (folder / "arguments.json").write_text(json.dumps(arguments))
    if "--fail" in arguments:
        sys.exit(7)
    if "--die-after" in arguments:
        threading.Timer(float(value_of("--die-after", arguments)), lambda: os._exit(9)).start()
    app = recording(create_app(EngineConfig(model=arguments[1], speed=1.0)), folder / "requests.jsonl")
    port = int(value_of("--port", arguments))
    # After the shutdown, uvicorn raises the signal again that stopped it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    uvicorn.run(app, port=port, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1)
    (folder / "ended").touch()


def value_of(option, arguments):
    return arguments[arguments.index(option) + 1]


def recording(app, file):
    """Wrap an application so that each posted JSON body is appended to the file as a line."""

    async def recorded(scope, receive, send):
        body = b""

        async def read():
            nonlocal body
            message = await receive()
            if message["type"] == "http.request":
                body += message["body"]
                if not message.get("more_body"):
                    write(body)
            return message

        def write(body):
            with file.open("a") as lines:
                lines.write(json.dumps(json.loads(body)) + "\n")

        posted = scope["type"] == "http" and scope["method"] == "POST"
        await app(scope, read if posted else receive, send)

    return recorded
