"""`python -m bench path`: the files and the carriers of one streamed chat request.

One gateway and one simulated vLLM run in this process and talk over real sockets. The gateway predicts with the shipped
embedding and a trained model. After a few requests to warm up, one request is traced from its arrival to the end of its
record. A file counts if its code runs for the request: in its task, in a task or callback that its task started, or in
the task that steps the scheduler.

A carrier is a value that is made for this request and that functions of more than one module make, take or return.
Values are dataclasses, named tuples, msgspec Structs, and the engine's response. Three kinds do not count: private
types, the scheduler's messages and actions, which are its interface, and values that stay inside the prediction or the
scheduling package.
"""

import asyncio
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import get_args

import httpx2
import msgspec
import numpy as np
import uvicorn
from litestar.types import ASGIApp, Receive, Scope, Send

from backends.simulator.config import EngineConfig
from backends.simulator.server import listening
from gateway.cli.options import JsonOption, console, print_json
from gateway.clock import SystemClock
from gateway.config import Settings
from gateway.prediction.embedder import load_embedder
from gateway.prediction.features import N_FEATURES
from gateway.prediction.fitting import MIN_ROWS, TrainingSet, fit_predictor
from gateway.prediction.predictor import Predictor, Version
from gateway.protocol.api_formats import CHAT
from gateway.scheduling.messages import Action, Message
from gateway.server.app import create_app
from gateway.upstream.client import UpstreamResponse
from gateway.upstream.transport import Http1Transport

ROOT = Path(__file__).parent.parent
WARM_UP_REQUESTS = 3
POLL_S = 0.02
BODY = {
    "stream": True,
    "max_tokens": 40,
    "messages": [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": "How high is the mountain, and who climbed it first? " * 20},
    ],
}
LIBRARIES = ("gateway/prediction/", "gateway/scheduling/")
MESSAGES = {*get_args(Message), *get_args(Action)}

_for_request: ContextVar[bool] = ContextVar("_for_request", default=False)


class RequestPath(msgspec.Struct, frozen=True):
    """What one request crosses: files in the order of their first use, and carriers by name."""

    files: list[str]
    carriers: list[str]


class Tracer:
    """A profile function that collects files and values.

    The values of the warm-up requests are kept, so that a value that lives longer than one request is not a carrier.
    """

    def __init__(self) -> None:
        self.is_warm = False
        self._files: dict[str, None] = {}
        self._users: dict[type, set[str]] = {}
        self._old: dict[int, object] = {}

    def path(self) -> RequestPath:
        """Return what the traced request crossed."""
        carriers = [kind.__name__ for kind, files in self._users.items() if _is_carrier(kind, files)]
        return RequestPath(list(self._files), carriers)

    def __call__(self, frame: FrameType, event: str, result: object) -> None:
        """Handle one event of `sys.setprofile`."""
        if event not in {"call", "return"} or not _runs_for_request():
            return
        code = frame.f_code
        if code.co_filename == "<string>" and code.co_name == "__init__" and event == "call":  # of a dataclass
            self._add(frame.f_locals["self"], _maker(frame))
            return
        file = _source(code.co_filename)
        if file is None:
            return
        if event == "return":
            self._add(result, file)
            return
        if self.is_warm:
            self._files.setdefault(file)
        for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
            self._add(frame.f_locals.get(name), file)

    def _add(self, value: object, file: str) -> None:
        if not _is_value(type(value)):
            return
        if not self.is_warm:
            self._old[id(value)] = value
        elif self._old.get(id(value)) is not value:
            self._users.setdefault(type(value), set()).add(file)


def path(as_json: JsonOption = False) -> None:
    """Count the files and the carrier types of one streamed chat request."""
    crossed = asyncio.run(trace())
    if as_json:
        counts = {"n_files": len(crossed.files), "n_carriers": len(crossed.carriers)}
        print_json({**counts, "files": crossed.files, "carriers": crossed.carriers})
        return
    console.print(f"{len(crossed.files)} files", *crossed.files, sep="\n  ")
    console.print(f"{len(crossed.carriers)} carriers", *crossed.carriers, sep="\n  ")


async def trace() -> RequestPath:
    """Run a gateway and an engine, and trace one request."""
    tracer = Tracer()
    with TemporaryDirectory() as folder:
        async with listening(EngineConfig()) as engine:
            gateway = create_app(_settings(engine, folder), clock=SystemClock(), transport=Http1Transport())
            _serve_model(gateway._core.predictor)
            async with (
                _serving(_traced(gateway.asgi, tracer)) as url,
                httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30.0) as client,
            ):
                await _ready(client)
                model = (await client.get("/v1/models")).json()["data"][0]["id"]
                for _ in range(WARM_UP_REQUESTS):
                    await _send(client, model)
                tracer.is_warm = True
                await _send(client, model)
    return tracer.path()


def _settings(engine: str, folder: str) -> Settings:
    """Return settings without a database, whose only scrape of the engine happens at the start."""
    tree = {
        "database": {"url": "postgresql+asyncpg://127.0.0.1:1/none", "data_dir": folder},
        "upstream": {"scrape_interval_s": 3600.0},
        "backends": [{"name": "gpu-0", "kind": "vllm", "url": engine}],
        "log": {"level": "error"},
    }
    return msgspec.convert(tree, Settings)


def _serve_model(predictor: Predictor) -> None:
    """Let the predictor serve a model that was trained on random rows: its errors do not matter here."""
    predictor.use_embedder(load_embedder("static"))
    random, n = np.random.default_rng(0), 2 * MIN_ROWS
    features = random.normal(size=(n, N_FEATURES)).astype(np.float32)
    rows = TrainingSet(features, random.uniform(1.0, 300.0, n), ["app"] * n)
    predictor.serve(fit_predictor(rows), Version(1, datetime.now(UTC), n))


def _traced(app: ASGIApp, tracer: Tracer) -> ASGIApp:
    """Trace the requests for chat completions."""

    async def traced(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != CHAT.path:
            return await app(scope, receive, send)
        _for_request.set(True)
        sys.setprofile(tracer)
        try:
            await app(scope, receive, send)
        finally:
            sys.setprofile(None)

    return traced


@asynccontextmanager
async def _serving(app: ASGIApp) -> AsyncGenerator[str]:
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical", lifespan="on", ws="none"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving


async def _ready(client: httpx2.AsyncClient) -> None:
    while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - the gateway answers, it has no event
        await asyncio.sleep(POLL_S)


async def _send(client: httpx2.AsyncClient, model: str) -> None:
    response = await client.post(CHAT.path, json={"model": model, **BODY}, headers={"x-app-id": "app"})
    response.raise_for_status()


def _runs_for_request() -> bool:
    if _for_request.get():
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return False
    return task is not None and getattr(task.get_coro(), "__qualname__", "") == "Dispatcher.run"


def _maker(frame: FrameType) -> str:
    """Return the file that makes the dataclass whose `__init__` this is; `dataclasses.replace` may lie between."""
    caller = frame.f_back
    while caller is not None and _source(caller.f_code.co_filename) is None:
        caller = caller.f_back
    return "" if caller is None else _source(caller.f_code.co_filename) or ""


@cache
def _source(filename: str) -> str | None:
    """Return the file's path in the checkout; None if it does not belong to the gateway or its adapters."""
    if not filename.startswith(f"{ROOT}/"):
        return None
    name = Path(filename).relative_to(ROOT).as_posix()
    counts = name.startswith(("gateway/", "backends/")) and not name.startswith("backends/simulator/")
    return name if counts else None


def _is_value(kind: type) -> bool:
    if not kind.__module__.startswith(("gateway.", "backends.")) or kind in MESSAGES or kind.__name__.startswith("_"):
        return False
    is_named_tuple = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return is_dataclass(kind) or is_named_tuple or issubclass(kind, (msgspec.Struct, UpstreamResponse))


def _is_carrier(kind: type, users: set[str]) -> bool:
    """Return whether several modules use the type, and not only modules of its own library."""
    own = kind.__module__.replace(".", "/")
    library = next((library for library in LIBRARIES if own.startswith(library)), None)
    return len(users) > 1 and (library is None or any(not user.startswith(library) for user in users))
