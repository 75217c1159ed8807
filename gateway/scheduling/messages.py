"""What the scheduler is told, and what it answers: plain values."""

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.scheduling.length import LengthQuantiles


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt that other requests may have too: a system prompt, a conversation so far."""

    key: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One generation request in the scheduler's terms. Times in monotonic seconds.

    `sequences` answers grow from the one prompt (or from the prompts of a list, whose tokens are summed). A lower
    `priority` goes first. `prefixes` are the prompt's beginnings, the longest first. Requests of one `batch_key` may
    share one call to a static engine; without one a request has its own.
    """

    id: str
    model: str
    prompt_tokens: int
    length: LengthQuantiles
    arrival_s: float
    deadline_s: float
    sequences: int = 1
    priority: int = 0
    prefixes: tuple[Prefix, ...] = ()
    batch_key: int | None = None


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as last seen; None is 'not known'. A backend that does not answer is not `healthy` and gets nothing.

    Engines that are `static` take one padded batch at a time. Those that are `reserving` hold the memory of prompt and
    `max_tokens` from a request's start to its end. `seen_s`: when it last told of itself, in monotonic seconds. While
    it has a `trial_limit`, no more than so many of the requests run there that were sent since it has one.
    """

    name: str
    models: frozenset[str]
    healthy: bool
    kv_capacity_tokens: int | None = None
    kv_used_tokens: int | None = None
    kv_block_tokens: int = 1
    max_concurrency: int | None = None
    max_model_len: int | None = None
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None
    static: bool = False
    reserving: bool = False
    seen_s: float | None = None
    trial_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """A request arrived."""

    request: Request


@dataclass(frozen=True, slots=True)
class Progress:
    """An answer has grown to `output_tokens`, summed over its sequences."""

    id: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The backend is through with the request, well or not; or its client went. Waiting or running, it is forgotten.

    `output_tokens` only of an answer that came to its own end: the scheduler learns from it.
    """

    id: str
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """A backend did not take the request: back to its place in the queue.

    With `full`, the backend has no room for now; otherwise it failed, and this request does not go there again.
    """

    id: str
    full: bool


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A static engine ran out of memory under a batch: back to the queue in two halves, closed to others."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackendSeen:
    """A backend was added, or looked at again."""

    state: BackendState


@dataclass(frozen=True, slots=True)
class BackendGone:
    """A backend was taken out of the configuration; what runs there runs on."""

    name: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by: the only thing that a deadline needs."""


Message = Submit | Progress | Finished | Returned | OutOfMemory | BackendSeen | BackendGone | Tick


class Reason(StrEnum):
    """Why a request is not dispatched."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    BACKENDS_FAILED = "backends_failed"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the request to the backend, now; with the others of its `batch`, where it names any, in one call.

    `rank` is for an engine that orders its own queue by priority, the lowest first: by response ratio at dispatch.
    """

    id: str
    backend: str
    batch: tuple[str, ...] = ()
    rank: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """Answer the request with an error; it is no longer known here."""

    id: str
    reason: Reason
    retry_after_s: float = field(default=1.0)


Action = Dispatch | Drop
