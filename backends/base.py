"""What the gateway asks of an engine, whatever its make.

`Backend` is the protocol, `Snapshot` what an engine says of itself at one moment, `BackendSpec` what its operator says
of it. An adapter holds what differs between engines and only that; the bytes of a request travel past it untouched.
"""

from dataclasses import dataclass, field
from typing import Protocol


class BackendUnreachableError(Exception):
    """The engine does not answer, or answers what cannot be understood; the message says which, without secrets."""


class UntranslatableError(ValueError):
    """The engine has no route for a request, and no words for it on those that it has; `param` is what it lacks."""

    def __init__(self, message: str, param: str | None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """An engine as its operator describes it; None is 'ask the engine', or for a time-out the gateway's own.

    `priority`: the engine orders its queue by the priority that a request carries. Time-outs are in seconds: to the
    first byte, between two bytes of a stream, and from sending a request to its last byte.
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
    """A model that an engine serves."""

    id: str
    max_model_len: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An engine at one moment, in its own words; None is 'it did not say'.

    `kv_used_tokens` counts active requests only: cached prefixes read as free. `preemptions` is the total since start.
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
    """An engine's error body, brought to the fields of OpenAI's."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class Translation(Protocol):
    """One request in an engine's own words, and what brings its answer back to those of OpenAI."""

    @property
    def path(self) -> str:
        """Where the request goes, below the engine's URL."""
        ...

    @property
    def body(self) -> bytes:
        """What is sent there."""
        ...

    def whole(self, body: bytes) -> bytes:
        """Return an answer in one piece as OpenAI's; b"" where it is none."""
        ...

    def feed(self, chunk: bytes) -> bytes:
        """Return the events, as OpenAI's, that a part of the answer's stream completes."""
        ...


class Backend(Protocol):
    """One engine."""

    @property
    def spec(self) -> BackendSpec:
        """The engine as its operator describes it."""
        ...

    async def scrape(self) -> Snapshot:
        """Ask the engine for its models, memory and load.

        Raises:
            BackendUnreachableError: no answer in time, an error status, or a body that is not what this kind sends.
        """
        ...

    def is_queue_full(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal means 'full now, try later' rather than 'this request is wrong'."""
        ...

    def has_failed(self, status: int, error: EngineError) -> bool:
        """Tell whether a refusal is the engine's own failure, so that another engine may do better."""
        ...

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent: less of it at once may go through."""
        ...

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read the engine's error body; one that is in no known shape becomes its first 500 characters."""
        ...

    def translate(self, path: str, body: bytes) -> Translation | None:
        """Put a request into the engine's own words, where it lacks the route that the request is for.

        Returns:
            None, as a rule: the engine takes the request as it is.

        Raises:
            UntranslatableError: the engine has no words for it.
        """
        ...
