"""The scheduler: one value that holds every queue and every ledger, and one method that changes it.

First come, first served per model, to the least loaded backend whose KV memory has room for the request's predicted
peak. A backend that runs nothing of ours gets work whatever the prediction says: never idle an engine to be clever.
Nobody else writes this state; a request is here from its `Submit` until its `Finished` or its `Drop`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.messages import (
    Action,
    BackendGone,
    BackendSeen,
    BackendState,
    Dispatch,
    Drop,
    Finished,
    Message,
    Progress,
    Reason,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.target import KvTarget
from gateway.scheduling.throughput import DispatchRate

FULL_BACKOFF_S = 0.25
"""How long a backend that answered 'full' is left alone."""

_TYPICAL_CONCURRENCY = 256
"""Stands in for the limit of a backend of which nothing is known, to compare its load with others'."""


@dataclass(slots=True)
class _Backend:
    state: BackendState
    ledger: KvLedger
    target: KvTarget = field(default_factory=KvTarget)
    foreign_tokens: int = 0
    """KV tokens in use there beyond our own: other clients', or what we predicted too low."""
    full_until_s: float = 0.0

    def see(self, state: BackendState) -> None:
        self.state = state
        self.target.see(state)
        self.ledger.block_tokens = state.kv_block_tokens
        used = state.kv_used_tokens
        self.foreign_tokens = 0 if used is None else max(0, used - self.ledger.held_tokens)

    def load_with(self, request: Request) -> float | None:
        """Share of the backend in use at its peak if `request` went there; None where it has no room."""
        running, limit = len(self.ledger), self.state.max_concurrency
        if limit is not None and running >= limit:
            return None
        if self.state.max_model_len is not None and request.prompt_tokens >= self.state.max_model_len:
            return 0.0  # the engine refuses it at once: no reason to let it hold up the queue
        capacity = self.state.kv_capacity_tokens
        if capacity is None:
            return (running + 1) / (limit or _TYPICAL_CONCURRENCY)
        peak = self.ledger.peak_tokens(request) + self.foreign_tokens
        if peak <= self.target.share * capacity or not running:
            return peak / capacity
        self.target.note_held_back()
        return None


@dataclass(slots=True)
class _Waiting:
    request: Request
    failed_on: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Running:
    waited: _Waiting
    backend: _Backend


@dataclass(slots=True)
class Scheduler:
    """All queues and ledgers.

    Args:
        max_queue: requests that may wait, over all models; the next one is dropped with a time to come back.
    """

    max_queue: int
    _queues: dict[str, OrderedDict[str, _Waiting]] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _backends: dict[str, _Backend] = field(default_factory=dict)
    _rate: DispatchRate = field(default_factory=DispatchRate)

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(map(len, self._queues.values()))

    @property
    def running(self) -> int:
        """Requests that backends have."""
        return len(self._running)

    def oldest_arrival_s(self) -> float | None:
        """When the request that waits longest arrived."""
        return min((waiting.request.arrival_s for waiting in self._heads()), default=None)

    def wake_at_s(self, now: float) -> float | None:
        """When `step` is next needed though nothing happens: the nearest deadline, or a full backend's next trial."""
        deadlines = [waiting.request.deadline_s for waiting in self._heads()]
        trials = [b.full_until_s for b in self._backends.values() if b.full_until_s > now] if deadlines else []
        return min(deadlines + trials, default=None)

    def reserved_tokens(self, backend: str) -> int:
        """Predicted peak of our own requests on a backend."""
        return round(self._backends[backend].ledger.peak_tokens()) if backend in self._backends else 0

    def running_on(self, backend: str) -> int:
        """Our own requests on a backend."""
        return len(self._backends[backend].ledger) if backend in self._backends else 0

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Take what happened, in order, and return what is to be done.

        Args:
            messages: since the last step.
            now: monotonic seconds, never less than at the last step.
        """
        messages = list(messages)
        actions: list[Action] = []
        for message in messages:
            actions += self._take(message, now)
        actions += self._expire(now)
        actions += self._dispatch(now)
        actions += self._shed([message.request for message in messages if isinstance(message, Submit)], now)
        return actions

    def _take(self, message: Message, now: float) -> Iterator[Action]:
        match message:
            case Submit(request):
                self._enqueue(_Waiting(request))
            case Progress(request_id, output_tokens):
                if request_id in self._running:
                    self._running[request_id].backend.ledger.grow(request_id, output_tokens)
            case Finished(request_id):
                self._forget(request_id)
            case Returned(request_id, full):
                yield from self._take_back(request_id, full=full, now=now)
            case BackendSeen(state):
                self._backends.setdefault(state.name, _Backend(state, KvLedger())).see(state)
            case BackendGone(name):
                self._backends.pop(name, None)
            case Tick():
                return

    def _take_back(self, request_id: str, *, full: bool, now: float) -> Iterator[Action]:
        if request_id not in self._running:
            return
        run = self._running[request_id]
        self._forget(request_id)
        if full:
            run.backend.full_until_s = now + FULL_BACKOFF_S
        else:
            run.waited.failed_on.add(run.backend.state.name)
        failed_on = run.waited.failed_on
        if failed_on and self._serving(run.waited.request.model) <= failed_on:
            yield Drop(request_id, Reason.BACKENDS_FAILED)
        else:
            self._requeue(run.waited)

    def _enqueue(self, waiting: _Waiting) -> None:
        """Queue by arrival: a request whose body took long to come goes before those that overtook it meanwhile."""
        queue = self._queue(waiting.request.model)
        newer = takewhile(lambda other: other.request.arrival_s > waiting.request.arrival_s, reversed(queue.values()))
        ids = [other.request.id for other in newer]
        queue[waiting.request.id] = waiting
        for request_id in reversed(ids):
            queue.move_to_end(request_id)

    def _requeue(self, waiting: _Waiting) -> None:
        """Put a request back at its place: before all that arrived later, which is at the front or close to it."""
        queue = self._queue(waiting.request.model)
        older = takewhile(lambda other: other.request.arrival_s <= waiting.request.arrival_s, queue.values())
        ids = [other.request.id for other in older]
        queue[waiting.request.id] = waiting
        for request_id in reversed([*ids, waiting.request.id]):
            queue.move_to_end(request_id, last=False)

    def _expire(self, now: float) -> Iterator[Action]:
        """Arrival order is deadline order, so only heads can be due."""
        for queue in self._queues.values():
            while queue and (head := next(iter(queue.values()))).request.deadline_s <= now:
                del queue[head.request.id]
                yield Drop(head.request.id, Reason.QUEUE_TIMEOUT)

    def _shed(self, arrived: list[Request], now: float) -> Iterator[Action]:
        """Drop of what has just arrived, the last first, what would wait beyond the bound."""
        for request in reversed(arrived):
            queue = self._queues[request.model]
            if self.waiting > self.max_queue and request.id in queue:
                del queue[request.id]
                yield Drop(request.id, Reason.QUEUE_FULL, self._rate.time_for_s(self.waiting, now))

    def _dispatch(self, now: float) -> Iterator[Action]:
        """Send what can be sent, oldest first over all models, since they may share backends."""
        models = {head.request.model for head in self._heads()}
        while models:
            model = min(models, key=self._head_arrival_s)
            queue = self._queues[model]
            if (placed := self._next(queue, now)) is None:
                models.remove(model)
                continue
            waiting, name = placed
            del queue[waiting.request.id]
            if not queue:
                models.remove(model)
            yield self._send(waiting, name, now)

    def _send(self, waiting: _Waiting, name: str, now: float) -> Dispatch:
        backend, request = self._backends[name], waiting.request
        backend.ledger.admit(request)
        self._running[request.id] = _Running(waiting, backend)
        self._rate.count(now)
        return Dispatch(request.id, name)

    def _next(self, queue: "OrderedDict[str, _Waiting]", now: float) -> tuple[_Waiting, str] | None:
        """Find the first that some backend has room for; it overtakes others only on backends that failed them all."""
        among = set(self._backends)
        for waiting in queue.values():
            if name := self._place(waiting, among, now):
                return waiting, name
            among &= waiting.failed_on
            if not among:
                return None
        return None

    def _place(self, waiting: _Waiting, among: set[str], now: float) -> str | None:
        """Choose the least loaded backend with room; ties go to the fewest running, then to the name."""
        request, best = waiting.request, None
        for name in among - waiting.failed_on:
            backend = self._backends[name]
            usable = backend.state.healthy and request.model in backend.state.models and backend.full_until_s <= now
            if not usable or (load := backend.load_with(request)) is None:
                continue
            candidate = (load, len(backend.ledger), name)
            best = candidate if best is None else min(best, candidate)
        return best[2] if best else None

    def _serving(self, model: str) -> set[str]:
        return {name for name, b in self._backends.items() if b.state.healthy and model in b.state.models}

    def _queue(self, model: str) -> OrderedDict[str, _Waiting]:
        return self._queues.setdefault(model, OrderedDict())

    def _head_arrival_s(self, model: str) -> float:
        return next(iter(self._queues[model].values())).request.arrival_s

    def _heads(self) -> Iterator[_Waiting]:
        return (next(iter(queue.values())) for queue in self._queues.values() if queue)

    def _forget(self, request_id: str) -> None:
        if request_id in self._running:
            self._running.pop(request_id).backend.ledger.release(request_id)
            return
        for queue in self._queues.values():
            queue.pop(request_id, None)
