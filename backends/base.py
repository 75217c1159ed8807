"""The interface that the gateway uses for every kind of engine.

`Backend` is the protocol. `BackendSpec` is an engine's configuration, `Snapshot` its state at one moment. An adapter
contains only what differs between kinds of engines. Request and response bytes do not pass through it, except where an
engine needs a translation.
"""

from dataclasses import dataclass, field
from typing import Protocol


class BackendUnreachableError(Exception):
    """The engine does not answer, or its answer cannot be understood. The message says which, without secrets."""


class UntranslatableError(ValueError):
    """The engine has no route for a request, and no other route can express it. `param` names the unsupported field."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """The operator's configuration of one engine.

    `None` means: ask the engine, or for a timeout: use the gateway's setting.

    Attributes:
        priority: the engine orders its own queue by the priority that each request carries.
        first_byte_timeout_s: longest time from sending a request to the first byte of its answer.
        idle_timeout_s: longest time between two bytes of a stream.
        total_timeout_s: longest time from sending a request to its last byte.
    """

    name: str
    kind: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] | None = None
    kv_tokens: int | None = None
    max_concurrency: int | None = None
    priority: bool = False
    first_byte_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    total_timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that an engine serves. `max_model_len` is in tokens."""

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of one engine at one moment. `None` means that the engine does not report the value.

    Attributes:
        models: the models that it serves.
        kv_capacity_tokens: size of the KV memory.
        kv_used_tokens: KV memory of active requests. Cached prefixes count as free.
        kv_block_tokens: size of one KV block.
        running: requests in the batch.
        waiting: requests in the engine's own queue.
        preemptions: preemptions since the engine's start.
    """

    models: tuple[ModelCard, ...]
    kv_capacity_tokens: int | None = None
    kv_used_tokens: int | None = None
    kv_block_tokens: int = 1
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None


@dataclass(frozen=True, slots=True)
class EngineError:
    """An engine's error, with the fields of OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class Translation(Protocol):
    """One request in an engine's own format. It also converts the answer back to OpenAI's format."""

    @property
    def path(self) -> str:
        """The path of the request, below the engine's URL."""
        ...

    @property
    def body(self) -> bytes:
        """The body of the request."""
        ...

    def whole(self, body: bytes) -> bytes:
        """Return a whole answer in OpenAI's format, or b"" if `body` is not an answer."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Return the stream events, in OpenAI's format, that `chunk` completes."""
        ...


class Backend(Protocol):
    """One engine."""

    @property
    def spec(self) -> BackendSpec:
        """The operator's configuration."""
        ...

    async def scrape(self) -> Snapshot:
        """Read the engine's models, memory and load.

        Raises:
            BackendUnreachableError: the engine does not answer in time, answers with an error status, or its
                answer does not have the format of this kind of engine.
        """
        ...

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Return whether the error means that the engine's queue is full. The same request may succeed later."""
        ...

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Return whether the error is a failure of the engine, so that another engine may succeed."""
        ...

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Return whether the engine ran out of memory, so that a smaller batch may succeed."""
        ...

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Return the fields of an error body. An unknown format gives its first 500 characters as the message."""
        ...

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Translate a request for an engine that does not have the request's route, or needs other fields.

        Returns:
            None if the engine takes the request unchanged, which is the usual case.

        Raises:
            UntranslatableError: the engine cannot express the request.
        """
        ...
