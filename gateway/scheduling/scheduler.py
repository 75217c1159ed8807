"""The scheduler: a pure state machine. Messages go in, actions come out, and time is an argument.

One `Scheduler` holds the whole state: the queue of every model, the load of every backend, and every running request.
`step` takes the messages since the last step, in order, and returns the actions: `Dispatch` a request to a backend, or
`Drop` it with an error. Only `step` changes the state; new settings are a message too. All other public methods read.
In the gateway only the `Dispatcher` calls `step`. The simulation runs the same code.

The scheduler knows a request from its `Submit` until its `Finished` or its `Drop`.

How a dispatch is decided:

1. Each model has a most urgent request, by priority and then by the policy. The most urgent of these goes first.
2. `decide` tests the request on one backend. It returns a place, or the reason against the backend. Of the backends
   with a place, the one that will complete the request first gets it.
3. If no backend takes the request, it waits, and no other request of its model overtakes it, because the memory that
   it waits for is being freed. Other requests may go first only on a backend that the request does not wait for:
   one that has failed it, or one on trial that tries other requests first.
4. The memory test never rejects a request on a backend that runs none of our requests. So a wrong prediction cannot
   leave an engine idle.

`explain` calls `decide` too, so it gives the reasons that a dispatch would find.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from gateway.scheduling.backend_load import BackendLoad, BackendStatus
from gateway.scheduling.demand import ModelDemand
from gateway.scheduling.messages import (
    Action,
    BackendObserved,
    BackendRemoved,
    BackendState,
    Dispatch,
    Drop,
    DropReason,
    Explanation,
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
from gateway.scheduling.placement import Place, explain, find_followers, find_place
from gateway.scheduling.policies import Policy, response_rank
from gateway.scheduling.queue import DispatchRate, ModelQueue, WaitingRequest, is_overdue
from gateway.scheduling.static_batch import place_static_batch

FULL_BACKOFF_S = 0.25
"""Seconds during which a backend that answered "full" gets no new requests."""

AWAY_BACKOFF_S = 1.0
"""Seconds for which the last backend of a model gets nothing after it took no connection. Scrapes decide meanwhile."""


@dataclass(slots=True)
class _Running:
    """A dispatched request: its queue entry, which may have to be put back, and its backend."""

    waiting: WaitingRequest
    load: BackendLoad


class Scheduler:
    """The queues of all models and the loads of all backends.

    Args:
        policy: the order in which requests are dispatched.
        limits: how many requests and tokens may wait. New requests beyond that are dropped with a Retry-After.
    """

    __slots__ = ("_closed_batches", "_limits", "_loads", "_models", "_policy", "_rate", "_running")

    def __init__(self, policy: Policy, limits: QueueLimits) -> None:
        self._policy = policy
        self._limits = limits
        self._models: dict[str, ModelDemand] = {}
        self._loads: dict[str, BackendLoad] = {}
        self._running: dict[str, _Running] = {}
        self._rate = DispatchRate()
        self._closed_batches = 0

    # One step

    def step(self, messages: Iterable[Message], now: float) -> list[Action]:
        """Apply the messages in order, drop and dispatch requests, and return these actions.

        Args:
            messages: all messages since the last step.
            now: monotonic seconds, never less than at the last step.
        """
        messages = list(messages)
        actions: list[Action] = []
        for message in messages:
            actions += self._apply(message, now)
        actions += self._drop_expired(now)
        if any(not isinstance(message, Progress) for message in messages):  # progress frees no memory
            actions += self._dispatch(now)
        actions += self._drop_over_limit([message.request for message in messages if isinstance(message, Submit)], now)
        return actions

    def _apply(self, message: Message, now: float) -> Iterator[Action]:
        match message:
            case Submit(request):
                self._enqueue(request)
            case Progress(request_id, output_tokens):
                self._grow(request_id, output_tokens, now)
            case Finished(request_id, output_tokens):
                self._finish(request_id, output_tokens, now)
            case Returned():
                yield from self._take_back(message, now)
            case OutOfMemory(ids):
                yield from self._split_batch(ids, now)
            case BackendObserved(state):
                self._observe(state, now)
            case BackendRemoved(name):
                self._loads.pop(name, None)
            case Reconfigure(policy, limits):
                self._reconfigure(policy, limits)
            case Tick():
                return

    # Effect of each message

    def _enqueue(self, request: Request) -> None:
        model = self._models.setdefault(request.model, ModelDemand(ModelQueue(self._policy)))
        if model.reference is None:
            model.reference = self._reference(request.model)
        model.enqueue(request, self._avoided(request))

    def _grow(self, request_id: str, output_tokens: int, now: float) -> None:
        if run := self._running.get(request_id):
            run.load.grow(run.waiting.request, output_tokens, now)

    def _finish(self, request_id: str, output_tokens: int | None, now: float) -> None:
        """Forget a waiting or running request, and learn from its answer if the answer is complete."""
        run = self._running.pop(request_id, None)
        if run is None:
            for model in self._models.values():
                model.queue.pop(request_id)
            return
        request = run.waiting.request
        run.load.release(request, output_tokens, now)
        if output_tokens:
            self._models[request.model].learn_one(request, output_tokens)

    def _take_back(self, message: Returned, now: float) -> Iterator[Action]:
        """Put a request back into its queue; drop it if every healthy backend of its model has failed it."""
        run = self._running.pop(message.id, None)
        if run is None:
            return
        waiting, request, load = run.waiting, run.waiting.request, run.load
        load.release(request, None, now)
        if message.full:
            load.full_until_s = now + FULL_BACKOFF_S
        elif message.away and self._serving(request.model) <= waiting.failed_on | {load.name}:
            load.full_until_s = now + AWAY_BACKOFF_S
        else:
            if message.too_long and load.state.max_model_len is not None:
                request = replace(request, context_tokens=max(request.context_tokens, load.state.max_model_len + 1))
            waiting = replace(waiting, request=request, failed_on=waiting.failed_on | {load.name})
            waiting.avoids = self._avoided(request)
        if waiting.failed_on and self._serving(request.model) <= waiting.failed_on:
            yield Drop(message.id, DropReason.BACKENDS_FAILED)
        else:
            self._models[request.model].queue.push_back(waiting)

    def _split_batch(self, ids: tuple[str, ...], now: float) -> Iterator[Action]:
        """Put a batch that ran out of memory back as two batches. A single request goes to another backend."""
        runs = [self._running[request_id] for request_id in ids if request_id in self._running]
        if len(runs) == 1:
            yield from self._take_back(Returned(runs[0].waiting.request.id, full=False), now)
            return
        runs.sort(key=lambda run: run.waiting.output_tokens)
        for half in (runs[: len(runs) // 2], runs[len(runs) // 2 :]):
            self._closed_batches += 1
            for run in half:
                request = run.waiting.request
                del self._running[request.id]
                run.load.release(request, None, now)
                waiting = replace(run.waiting, closed_batch=self._closed_batches)
                self._models[request.model].queue.push_back(waiting)

    def _observe(self, state: BackendState, now: float) -> None:
        if state.name not in self._loads:
            self._loads[state.name] = BackendLoad(state)
        load = self._loads[state.name]
        before, was_selective = load.state, self._is_selective()
        load.on_scrape(state, now)
        if _selects(before) != _selects(state) and (was_selective or self._is_selective()):
            for model in self._models.values():
                model.queue.reorder(self._policy, self._avoided)
        for name in state.models & self._models.keys():
            self._models[name].reference = self._reference(name) or self._models[name].reference

    def _reconfigure(self, policy: Policy | None, limits: QueueLimits | None) -> None:
        self._limits = limits or self._limits
        if policy is not None and policy != self._policy:
            self._policy = policy
            for model in self._models.values():
                model.queue.reorder(policy)

    def _avoided(self, request: Request) -> frozenset[str]:
        """Return the backends on trial that try other requests first, because they have failed this one."""
        loads = self._loads.values()
        avoided = [load.name for load in loads if load.is_reserved_from(request)]
        too_small = [load.name for load in loads if not load.fits_context(request)]
        if too_small and self._serving(request.model).difference(too_small):
            avoided += too_small
        return frozenset(avoided)

    def _is_selective(self) -> bool:
        """Return whether some requests do not wait for some backends, besides those that have failed them."""
        states = [load.state for load in self._loads.values()]
        return any(state.reserved_from for state in states) or len({state.max_model_len for state in states}) > 1

    def _serving(self, model: str) -> set[str]:
        """Return the names of the healthy backends that serve a model."""
        return {load.name for load in self._loads.values() if load.state.healthy and model in load.state.models}

    def _reference(self, model: str) -> BackendLoad | None:
        """Return the backend whose speed predicts the service times of a model."""
        serving = self._serving(model)
        return self._loads[min(serving)] if serving else None

    # Dispatch

    def _dispatch(self, now: float) -> Iterator[Dispatch]:
        """Dispatch until no backend takes the next request of any model. The models may share backends."""
        heads = {name: head for name, model in self._models.items() if (head := model.queue.most_urgent(now))}
        while heads:
            name = next(iter(heads)) if len(heads) == 1 else self._next_model(heads, now)
            model, head = self._models[name], heads.pop(name)
            if (place := self._find_place(model, head, now)) is None:
                continue
            yield from self._dispatch_group(model, place, now)
            if next_head := model.queue.most_urgent(now):
                heads[name] = next_head

    def _next_model(self, heads: dict[str, WaitingRequest], now: float) -> str:
        """Return the model whose most urgent request goes next."""
        lowest = min(head.request.priority for head in heads.values())

        def rank(name: str) -> tuple[float, float]:
            head, request = heads[name], heads[name].request
            priority = lowest if is_overdue(request, now) else request.priority
            return priority, -self._policy.urgency(request.arrival_s, head.service_s, now)

        return min(heads, key=rank)

    def _find_place(self, model: ModelDemand, head: WaitingRequest, now: float) -> Place | None:
        for waiting, loads in self._candidates(model, head, now):
            if place := find_place(waiting, loads, model.bias, now):
                return place
        return None

    def _candidates(
        self, model: ModelDemand, head: WaitingRequest, now: float
    ) -> Iterator[tuple[WaitingRequest, list[BackendLoad]]]:
        """Yield each request of a model that may go next, the most urgent first, with the backends open to it.

        All backends are open to the head. To any other request, only those backends are open that no more urgent
        request waits for (`BackendLoad.reason_to_avoid`).
        """
        waiting: WaitingRequest | None = head
        loads = list(self._loads.values())
        passed_over: set[str] = set()
        while waiting:
            yield waiting, loads
            loads = [load for load in loads if load.reason_to_avoid(waiting)]
            passed_over.add(waiting.request.id)
            waiting = model.queue.most_urgent(now, passed_over) if loads else None

    def _dispatch_group(self, model: ModelDemand, first: Place, now: float) -> Iterator[Dispatch]:
        """Dispatch a request and those that go with it: its static batch, or requests of similar length (`magnus`)."""
        if first.load.state.static:
            members = place_static_batch(first, model.queue, model.bias, now)
            one_call = len(members) > 1 and first.waiting.request.batch_key is not None
            ids = tuple(member.waiting.request.id for member in members) if one_call else ()
            for member in members:
                yield self._dispatch_one(model, member, now, ids)
            return
        yield self._dispatch_one(model, first, now)
        if self._policy.homogeneous:
            for follower in find_followers(first, model.queue, model.bias, now):
                yield self._dispatch_one(model, follower, now)

    def _dispatch_one(self, model: ModelDemand, place: Place, now: float, batch: tuple[str, ...] = ()) -> Dispatch:
        request, load = place.waiting.request, place.load
        model.queue.pop(request.id)
        load.admit(request, place.length, place.curve, now)
        self._running[request.id] = _Running(place.waiting, load)
        self._rate.count(now)
        return Dispatch(request.id, load.name, batch, response_rank(request.arrival_s, place.waiting.service_s, now))

    # Limits of the queue

    def _drop_expired(self, now: float) -> Iterator[Action]:
        for model in self._models.values():
            for waiting in model.queue.pop_expired(now):
                yield Drop(waiting.request.id, DropReason.QUEUE_TIMEOUT)

    def _drop_over_limit(self, arrived: list[Request], now: float) -> Iterator[Action]:
        """Drop requests that arrived in this step, the last one first, until the queues are within the limits."""
        for request in reversed(arrived):
            waiting = self.waiting
            if waiting <= self._limits.max_requests and self.waiting_tokens <= self._limits.max_tokens:
                return
            if self._models[request.model].queue.pop(request.id):
                yield Drop(request.id, DropReason.QUEUE_FULL, self._rate.retry_after_s(waiting, now))

    # State for readers

    @property
    def policy(self) -> Policy:
        """The order in which requests are dispatched."""
        return self._policy

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(len(model.queue) for model in self._models.values())

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the prompts and predicted answers of all waiting requests."""
        return sum(model.queue.tokens for model in self._models.values())

    @property
    def running(self) -> int:
        """Requests that are dispatched and not finished."""
        return len(self._running)

    def waiting_by_class(self) -> dict[int, int]:
        """Return the number of waiting requests in each length class."""
        counts = (Counter(model.queue.count_by_class()) for model in self._models.values())
        return dict(sum(counts, Counter()))

    def oldest_arrival_s(self) -> float | None:
        """Return the arrival time of the request that waits longest; None if no request waits."""
        heads = (head for model in self._models.values() for head in model.queue.heads())
        return min((head.request.arrival_s for head in heads), default=None)

    def wake_at_s(self, now: float) -> float | None:
        """Return when a `Tick` is due: at the next deadline or end of a back-off; None if no request waits."""
        deadlines = [model.queue.next_deadline_s for model in self._models.values() if len(model.queue)]
        backoffs = [load.full_until_s for load in self._loads.values() if load.full_until_s > now] if deadlines else []
        return min(deadlines + backoffs, default=None)

    def in_flight(self, backend: str) -> int:
        """Return the number of requests that run on a backend."""
        load = self._loads.get(backend)
        return len(load.ledger) if load else 0

    def backend_status(self, backend: str) -> BackendStatus | None:
        """Return the load of a backend and what is learned of it; None if the scheduler does not know the backend."""
        load = self._loads.get(backend)
        return load.status() if load else None

    def explain(self, now: float) -> list[Explanation]:
        """Return the requests of each model that may go next, with the reason against every backend.

        All other requests wait because each backend is kept for a more urgent request of their model.
        """
        loads = list(self._loads.values())
        return [
            explain(waiting, open_to, loads, model.bias, now)
            for model in self._models.values()
            if (head := model.queue.most_urgent(now))
            for waiting, open_to in self._candidates(model, head, now)
        ]


def _selects(state: BackendState) -> tuple[object, ...]:
    """Return the part of a backend's state that changes which requests wait for it."""
    return state.reserved_from, state.max_model_len, state.models, state.healthy
