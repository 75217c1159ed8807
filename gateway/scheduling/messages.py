"""The messages that the scheduler takes, and the actions and explanations that it returns: plain, frozen values."""

from dataclasses import dataclass, field
from enum import StrEnum

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.policies import Policy


@dataclass(frozen=True, slots=True)
class Prefix:
    """A part at the start of a prompt that other requests may share, such as a system prompt.

    Attributes:
        key: equal prefixes have equal keys.
        tokens: the prefix's length in tokens.
    """

    key: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Request:
    """One generation request, as the scheduler needs it. Times are monotonic seconds.

    Attributes:
        prompt_tokens: tokens of the prompt; of all prompts together if the request has a list of them.
        length: predicted length of one answer.
        deadline_s: when the request leaves the queue if it still waits.
        sequences: answers that the engine generates in parallel for this request.
        priority: a lower number goes first.
        prefixes: prefixes of the prompt, the longest first.
        batch_key: requests with the same key may share one call to a static engine; None: a call of its own.
        context_tokens: tokens of the longest prompt and its requested answer; 0 if they are unknown.
        fingerprint: two requests with the same value are alike, and an engine probably fails both or none.
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
    context_tokens: int = 0
    fingerprint: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as it was last scraped; None means that the value is unknown.

    Attributes:
        healthy: the backend answers and may get requests.
        kv_block_tokens: the engine allocates KV memory in blocks of this many tokens.
        max_concurrency: most requests that the operator allows there at once.
        max_model_len: the engine rejects prompts of this many tokens or more.
        static: the engine takes one padded batch at a time.
        reserving: the engine holds memory for the prompt and `max_tokens` from a request's start to its end.
        scraped_s: when the metrics were read, in monotonic seconds.
        trial_limit: while it is set, at most this many of the requests that were sent since then run there.
        reserved_from: fingerprints of requests that the backend does not get yet, because the next request is a trial
            after they have failed.
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
    scraped_s: float | None = None
    trial_limit: int | None = None
    reserved_from: frozenset[tuple[int, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """How much may wait, over all models.

    Attributes:
        max_requests: most requests in all queues.
        max_tokens: most tokens of their prompts and predicted answers.
    """

    max_requests: int
    max_tokens: int


# Messages


@dataclass(frozen=True, slots=True)
class Submit:
    """A request arrived."""

    request: Request


@dataclass(frozen=True, slots=True)
class Progress:
    """A request has `output_tokens` by now, summed over its sequences."""

    id: str
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A request is over, whether it waited or ran, and whether it succeeded, failed or was cancelled.

    `output_tokens` is set only for an answer that ended by itself. The scheduler learns from those.
    """

    id: str
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Returned:
    """A backend did not take a request. The request goes back to its place in the queue.

    `full` means that the backend has no room for now. Otherwise the backend failed, and the request never goes there
    again.

    `too_long` means that the backend refused the request as longer than its context. `away` means that the backend took
    no connection, so that the request may go there again.
    """

    id: str
    full: bool
    too_long: bool = False
    away: bool = False


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A static engine ran out of memory in a batch. The batch goes back to the queue as two halves."""

    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BackendObserved:
    """A backend was added, or scraped again."""

    state: BackendState


@dataclass(frozen=True, slots=True)
class BackendRemoved:
    """A backend was taken out of the configuration. Its running requests go on to their end."""

    name: str


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """The settings changed. A field that is None keeps its value."""

    policy: Policy | None = None
    limits: QueueLimits | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed and nothing else happened: a deadline or a back-off may be over."""


Message = Submit | Progress | Finished | Returned | OutOfMemory | BackendObserved | BackendRemoved | Reconfigure | Tick


# Actions


class DropReason(StrEnum):
    """Why the scheduler drops a request."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    BACKENDS_FAILED = "backends_failed"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send a request to a backend now.

    Attributes:
        batch: ids that go to the backend in one call, this one included; empty if the request has a call of its own.
        rank: for engines that order their own queue by priority, the lowest first. It follows the response ratio.
    """

    id: str
    backend: str
    batch: tuple[str, ...] = ()
    rank: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Drop:
    """Answer a request with an error. The scheduler has already forgotten it."""

    id: str
    reason: DropReason
    retry_after_s: float = field(default=1.0)


Action = Dispatch | Drop


# Explanations


class WaitReason(StrEnum):
    """Why a request that waits is not dispatched to a certain backend."""

    OTHER_MODEL = "serves other models"
    FAILED = "has failed this request"
    CONTEXT = "has a context that is too small for the request"
    TRIAL_RESERVED = "tries another request first, after this one has failed there"
    UNHEALTHY = "is not healthy"
    FULL = "answered that it is full"
    TRIAL_LIMIT = "is on trial or warms up and has its few requests"
    BATCH = "runs a batch"
    MAX_NUM_SEQS = "runs as many requests as it can"
    MEMORY = "has no memory for the predicted peak"
    MORE_URGENT = "is kept for a more urgent request of the model"


@dataclass(frozen=True, slots=True)
class Explanation:
    """A request that goes next for its model, and why it still waits.

    Attributes:
        waited_s: seconds since its arrival.
        reasons: the reason against each backend, by name. A backend that would take the request is not in it.
    """

    model: str
    request_id: str
    waited_s: float
    reasons: dict[str, WaitReason]
