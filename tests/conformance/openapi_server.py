"""An engine that is generated from its OpenAPI document: every request and every answer is validated against it.

Values of answers are generated from the schemas. `facts` sets, by schema, the few values that have a meaning.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import uvicorn

EVENTS = "text/event-stream"
STREAM_EVENTS = 4
"""Number of events of a streamed answer. The last one has the reason for the end."""


class Document:
    """An OpenAPI 3.0 document, its schemas as JSON Schema has them."""

    def __init__(self, path: Path) -> None:
        self._tree = _nullable_as_null(json.loads(path.read_text()))

    def operation(self, method: str, path: str) -> dict[str, Any] | None:
        return self._tree["paths"].get(path, {}).get(method.lower())

    def faults(self, schema: dict[str, Any], value: object) -> list[str]:
        """Return how the value violates its schema."""
        whole = {**schema, "components": self._tree["components"]}
        return [error.message for error in jsonschema.Draft202012Validator(whole).iter_errors(value)]

    def example(self, schema: dict[str, Any], facts: Mapping[str, dict[str, Any]]) -> Any:
        """Generate a value: of an object its required fields and those of `facts`, of alternatives the first."""
        if "$ref" in schema:
            name = schema["$ref"].rsplit("/", 1)[1]
            made = self.example(self._tree["components"]["schemas"][name], facts)
            return made | facts[name] if name in facts else made
        if "allOf" in schema:
            return {key: value for part in schema["allOf"] for key, value in self.example(part, facts).items()}
        if "anyOf" in schema or "oneOf" in schema:
            return self.example((schema.get("oneOf") or schema["anyOf"])[0], facts)
        if "enum" in schema:
            return schema["enum"][0]
        match schema["type"]:
            case "object":
                required = schema.get("required", [])
                return {name: self.example(schema["properties"][name], facts) for name in required}
            case "array":
                return [self.example(schema["items"], facts)]
            case "string":
                return "word "
            case "boolean":
                return False
            case "integer":
                return schema.get("minimum", 0) + 1
            case _:
                return 0.5


def _nullable_as_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_nullable_as_null(item) for item in node]
    if not isinstance(node, dict):
        return node
    plain = {name: _nullable_as_null(value) for name, value in node.items() if name != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if node.get("nullable") is True else plain


@dataclass
class OpenApiServer:
    """An ASGI application.

    Args:
        document: The document to serve.
        facts: Values by schema, for every answer.
        ending: Values by schema, for the last event of a stream.
        pages: Bodies by path, where the document has no schema.
        done: Paths whose streams end in `[DONE]`, which has no schema either.
        errors: Status and body by path; a path answers with them as long as it is listed.
    """

    document: Document
    facts: dict[str, dict[str, Any]]
    ending: dict[str, dict[str, Any]]
    pages: dict[str, bytes] = field(default_factory=dict)
    done: frozenset[str] = frozenset()
    errors: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    """The violations of the document by the requests so far."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        method, path = scope["method"], scope["path"]
        operation = self.document.operation(method, path)
        if operation is None:
            return await _send(send, 404, "text/plain", b"")
        if path in self.pages:
            return await _send(send, 200, "text/plain", self.pages[path])
        body = await _body(receive)
        if "requestBody" in operation:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            request = json.loads(body)
            self.requests.append((path, request))
            if faults := self.document.faults(schema, request):
                self.faults += [f"{path}: {fault}" for fault in faults]
                return await self._refuse(send, operation, 422, {"error": faults[0], "error_type": "validation"})
            if path in self.errors:
                return await self._refuse(send, operation, *self.errors[path])
        else:
            request = {}
        content = operation["responses"]["200"].get("content", {})
        if not content:
            return await _send(send, 200, "text/plain", b"")
        if EVENTS in content and (request.get("stream") or len(content) == 1):
            return await self._stream(send, path, content[EVENTS]["schema"])
        answer = self._valid(content["application/json"]["schema"], self.facts)
        return await _send(send, 200, "application/json", json.dumps(answer).encode())

    async def _stream(self, send: Any, path: str, schema: dict[str, Any]) -> None:
        await _start(send, 200, EVENTS)
        for number in range(1, STREAM_EVENTS + 1):
            facts = self.facts | self.ending if number == STREAM_EVENTS else self.facts
            event = b"data: " + json.dumps(self._valid(schema, facts)).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
        done = b"data: [DONE]\n\n" if path in self.done else b""
        await send({"type": "http.response.body", "body": done, "more_body": False})

    async def _refuse(self, send: Any, operation: dict[str, Any], status: int, error: dict[str, Any]) -> None:
        (content,) = operation["responses"][str(status)]["content"].values()
        assert not self.document.faults(content["schema"], error)
        await _send(send, status, "application/json", json.dumps(error).encode())

    def _valid(self, schema: dict[str, Any], facts: Mapping[str, dict[str, Any]]) -> Any:
        answer = self.document.example(schema, facts)
        faults = self.document.faults(schema, answer)
        assert not faults, faults
        return answer


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def _start(send: Any, status: int, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Any, status: int, content_type: str, body: bytes) -> None:
    await _start(send, status, content_type)
    await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def listening(server: OpenApiServer) -> AsyncIterator[str]:
    """Serve on a free port until the block ends. Yields the base URL."""
    config = uvicorn.Config(server, port=0, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    running = _Server(config)
    task = asyncio.create_task(running.serve())
    await running.listening.wait()
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        await task


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
