"""The scheduler: one value that holds every queue and every backend's load, and one method that changes it.

While some backend can take more: the policy's most urgent request goes to the backend that will have it done first,
among those whose KV memory has room for its peak. If none has, nothing of its model overtakes it: what it waits for is
being freed. A backend that runs nothing of ours gets work whatever the prediction says: never idle an engine to be
clever. Nobody else writes this state; a request is here from its `Submit` until its `Finished` or its `Drop`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from gateway.scheduling.backend_load import FULL_BACKOFF_S, BackendLoad
from gateway.scheduling.demand import ModelDemand
from gateway.scheduling.explain import Explanation, explain
from gateway.scheduling.messages import (
    Action,
    BackendObserved,
    BackendRemoved,
    BackendState,
    Dispatch,
    Drop,
    DropReason,
    Finished,
    Message,
    OutOfMemory,
    Progress,
    QueueLimits,
    Reconfigure,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.placement import Place, place, static_batch, wave
from gateway.scheduling.policies import Policy, response_rank
from gateway.scheduling.queue import ModelQueue, Waiting, is_overdue
from gateway.scheduling.throughput import DispatchRate


@dataclass(slots=True)
class _Running:
    waited: Waiting
    load: BackendLoad


@dataclass(slots=True)
class Scheduler:
    """All queues and all backends' loads.

    Args:
        policy: in which order requests go.
        limits: beyond these the newest are dropped with a time to come back.
    """

    policy: Policy
    limits: QueueLimits
    _models: dict[str, ModelDemand] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _loads: dict[str, BackendLoad] = field(default_factory=dict)
    _rate: DispatchRate = field(default_factory=DispatchRate)
    _closed_batches: int = 0

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(len(model.queue) for model in self._models.values())

    @property
    def waiting_tokens(self) -> int:
        """Tokens of their prompts and predicted answers."""
        return sum(model.queue.tokens for model in self._models.values())

    @property
    def running(self) -> int:
        """Requests that backends have."""
        return len(self._running)

    def waiting_by_class(self) -> dict[int, int]:
        """Requests in all queues by length class."""
        counts: dict[int, int] = {}
        for model in self._models.values():
            for length_class, count in model.queue.by_class().items():
                counts[length_class] = counts.get(length_class, 0) + count
        return counts

    def oldest_arrival_s(self) -> float | None:
        """When the request that waits longest arrived."""
        return min((head.request.arrival_s for head in self._heads()), default=None)

    def wake_at_s(self, now: float) -> float | None:
        """When `step` is next needed though nothing happens: the nearest deadline, or a full backend's next trial."""
        deadlines = [model.queue.next_deadline_s for model in self._models.values() if len(model.queue)]
        trials = [load.full_until_s for load in self._loads.values() if load.full_until_s > now] if deadlines else []
        return min(deadlines + trials, default=None)

    def load(self, backend: str) -> BackendLoad | None:
        """What is known of a backend, to read and not to change."""
        return self._loads.get(backend)

    def in_flight(self, backend: str) -> int:
        """Requests that a backend has."""
        load = self._loads.get(backend)
        return len(load.ledger) if load else 0

    def explain(self, now: float) -> list[Explanation]:
        """Say of each model's next request what keeps it from every backend."""
        heads = [head for model in self._models.values() if (head := model.queue.most_urgent(now))]
        return [explain(head, list(self._loads.values()), now) for head in heads]

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
        if any(not isinstance(message, Progress) for message in messages):  # growing answers make no room
            actions += self._dispatch(now)
        actions += self._shed([message.request for message in messages if isinstance(message, Submit)], now)
        return actions

    def _take(self, message: Message, now: float) -> Iterator[Action]:
        match message:
            case Submit(request):
                self._enqueue(request)
            case Progress(request_id, output_tokens):
                if run := self._running.get(request_id):
                    run.load.grow(run.waited.request, output_tokens, now)
            case Finished(request_id, output_tokens):
                self._finish(request_id, output_tokens, now)
            case Returned(request_id, full):
                yield from self._take_back(request_id, full=full, now=now)
            case OutOfMemory(ids):
                yield from self._split(ids, now)
            case BackendObserved(state):
                self._see(state, now)
            case BackendRemoved(name):
                self._loads.pop(name, None)
            case Reconfigure() | Tick():
                return

    def _enqueue(self, request: Request) -> None:
        model = self._models.setdefault(request.model, ModelDemand(ModelQueue(self.policy)))
        if model.example is None:
            model.example = self._example(request.model)
        model.enqueue(request)

    def _finish(self, request_id: str, output_tokens: int | None, now: float) -> None:
        """Forget a request; learn from its answer, if it came to its own end."""
        run = self._running.pop(request_id, None)
        if run is None:
            for model in self._models.values():
                model.queue.pop(request_id)
            return
        request = run.waited.request
        run.load.release(request, output_tokens, now)
        if output_tokens:
            self._models[request.model].learn_one(request, output_tokens)

    def _take_back(self, request_id: str, *, full: bool, now: float) -> Iterator[Action]:
        run = self._running.pop(request_id, None)
        if run is None:
            return
        waited, request = run.waited, run.waited.request
        run.load.release(request, None, now)
        if full:
            run.load.full_until_s = now + FULL_BACKOFF_S
        else:
            waited = replace(waited, failed_on=waited.failed_on | {run.load.name})
        if waited.failed_on and self._serving(request.model) <= waited.failed_on:
            yield Drop(request_id, DropReason.BACKENDS_FAILED)
        else:
            self._models[request.model].queue.push_back(waited)

    def _split(self, ids: tuple[str, ...], now: float) -> Iterator[Action]:
        """Put a batch that ran out of memory back in two halves; one request alone may fit another backend."""
        runs = [self._running[request_id] for request_id in ids if request_id in self._running]
        if len(runs) == 1:
            yield from self._take_back(runs[0].waited.request.id, full=False, now=now)
            return
        runs.sort(key=lambda run: run.waited.output_tokens)
        for half in (runs[: len(runs) // 2], runs[len(runs) // 2 :]):
            self._closed_batches += 1
            for run in half:
                request = run.waited.request
                del self._running[request.id]
                run.load.release(request, None, now)
                waited = replace(run.waited, closed_batch=self._closed_batches)
                self._models[request.model].queue.push_back(waited)

    def _see(self, state: BackendState, now: float) -> None:
        if state.name not in self._loads:
            self._loads[state.name] = BackendLoad(state)
        self._loads[state.name].see(state, now)
        for name in state.models & self._models.keys():
            self._models[name].example = self._example(name) or self._models[name].example

    def _expire(self, now: float) -> Iterator[Action]:
        for model in self._models.values():
            for waiting in model.queue.expired(now):
                yield Drop(waiting.request.id, DropReason.QUEUE_TIMEOUT)

    def _shed(self, arrived: list[Request], now: float) -> Iterator[Action]:
        """Drop of what has just arrived, the last first, what would wait beyond the limits."""
        limits = self.limits
        for request in reversed(arrived):
            waiting = self.waiting
            if waiting <= limits.max_requests and self.waiting_tokens <= limits.max_tokens:
                return
            if self._models[request.model].queue.pop(request.id):
                yield Drop(request.id, DropReason.QUEUE_FULL, self._rate.time_for_s(waiting, now))

    def _dispatch(self, now: float) -> Iterator[Action]:
        """Send what can be sent, the most urgent first over all models, since they may share backends."""
        heads = {name: head for name, model in self._models.items() if (head := model.queue.most_urgent(now))}
        while heads:
            name = next(iter(heads)) if len(heads) == 1 else self._most_urgent(heads, now)
            model, head = self._models[name], heads.pop(name)
            if (first := self._first(model, head, now)) is None:
                continue
            yield from self._send(model, first, now)
            if next_head := model.queue.most_urgent(now):
                heads[name] = next_head

    def _most_urgent(self, heads: dict[str, Waiting], now: float) -> str:
        """Return the model whose head goes next."""
        lowest = min(head.request.priority for head in heads.values())

        def rank(name: str) -> tuple[float, float]:
            head, request = heads[name], heads[name].request
            priority = lowest if is_overdue(request, now) else request.priority
            return priority, -self.policy.urgency(request.arrival_s, head.service_s, now)

        return min(heads, key=rank)

    def _first(self, model: ModelDemand, head: Waiting | None, now: float) -> Place | None:
        """Find a place for the most urgent; another overtakes it only on backends that have failed it."""
        loads = list(self._loads.values())
        passed_over: set[str] = set()
        while head and loads:
            if found := place(head, loads, model.bias, now):
                return found
            loads = [load for load in loads if load.name in head.failed_on]
            passed_over.add(head.request.id)
            head = model.queue.most_urgent(now, passed_over) if loads else None
        return None

    def _send(self, model: ModelDemand, first: Place, now: float) -> Iterator[Dispatch]:
        if first.load.state.static:
            members = static_batch(first, model.queue, model.bias, now)
            one_call = len(members) > 1 and first.waiting.request.batch_key is not None
            ids = tuple(member.waiting.request.id for member in members) if one_call else ()
            for member in members:
                yield self._admit(model, member, now, ids)
            return
        yield self._admit(model, first, now)
        if self.policy.homogeneous:
            for follower in wave(first, model.queue, model.bias, now):
                yield self._admit(model, follower, now)

    def _admit(self, model: ModelDemand, found: Place, now: float, batch: tuple[str, ...] = ()) -> Dispatch:
        request, load = found.waiting.request, found.load
        model.queue.pop(request.id)
        load.admit(request, found.length, found.curve, now)
        self._running[request.id] = _Running(found.waiting, load)
        self._rate.count(now)
        return Dispatch(request.id, load.name, batch, response_rank(request.arrival_s, found.waiting.service_s, now))

    def _serving(self, model: str) -> set[str]:
        return {load.name for load in self._loads.values() if load.state.healthy and model in load.state.models}

    def _example(self, model: str) -> BackendLoad | None:
        serving = self._serving(model)
        return self._loads[min(serving)] if serving else None

    def _heads(self) -> Iterator[Waiting]:
        return (head for model in self._models.values() for head in model.queue.heads())
