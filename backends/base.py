"""What the gateway asks of an engine, whatever its make.

`Backend` is the protocol, `Snapshot` what an engine says of itself at one moment, `BackendSpec` what its operator says
of it. An adapter holds what differs between engines and only that; the bytes of a request travel past it untouched.
"""

from dataclasses import dataclass, field
from typing import Protocol


class BackendUnreachableError(Exception):
    """The engine does not answer, or answers what cannot be understood; the message says which, without secrets."""


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """An engine as its operator describes it; None is 'ask the engine'."""

    name: str
    kind: str
    url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] | None = None
    kv_tokens: int | None = None
    max_concurrency: int | None = None


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

    def is_out_of_memory(self, status: int, error: EngineError) -> bool:
        """Tell whether the engine ran out of memory under what it was sent: less of it at once may go through."""
        ...

    def read_error(self, status: int, body: bytes) -> EngineError:
        """Read the engine's error body; one that is in no known shape becomes its first 500 characters."""
        ...
