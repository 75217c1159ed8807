"""A second record of where every request is, and the properties that must hold after each step of the scheduler."""

import itertools
from dataclasses import dataclass, field

import numpy as np

from gateway.scheduling.demand import LengthBias
from gateway.scheduling.kv_ledger import Curve
from gateway.scheduling.messages import (
    BackendObserved,
    BackendRemoved,
    BackendState,
    Dispatch,
    Drop,
    DropReason,
    Finished,
    OutOfMemory,
    Progress,
    Reconfigure,
    Request,
    Returned,
    Submit,
    WaitReason,
)
from gateway.scheduling.policies import Fcfs
from gateway.scheduling.queue import is_overdue
from gateway.scheduling.scheduler import FULL_BACKOFF_S
from gateway.scheduling.static_batch import PlannedBatch, StaticLimits

MODELS = ("llama", "mistral")


@dataclass(eq=False)
class Engine:
    """A backend since it was last added. Requests that run on an earlier backend of its name do not belong to it."""

    state: BackendState
    running: set[str] = field(default_factory=set)
    trials: set[str] = field(default_factory=set)
    full_until_s: float = 0.0

    def observe(self, state):
        self.state = state
        if not state.healthy or state.trial_limit is None:
            self.trials.clear()

    def serves(self, model):
        return self.state.healthy and model in self.state.models

    def rejects(self, request):
        limit = self.state.max_model_len
        return limit is not None and request.prompt_tokens >= limit


@dataclass(eq=False)
class Entry:
    """A request and where it is: waiting, running, dropped or finished."""

    request: Request
    where: str
    tokens: int
    engine: Engine | None = None
    failed_on: set[str] = field(default_factory=set)
    half: int = 0


class Book:
    """Where every request is, derived from the scheduler's messages and actions."""

    def __init__(self, scheduler, policy, limits):
        self.scheduler = scheduler
        self.policy, self.limits = policy, limits
        self.now = 0.0
        self.entries: dict[str, Entry] = {}
        self.engines: dict[str, Engine] = {}
        self.biases = {model: LengthBias() for model in MODELS}
        self.halves = itertools.count(1)

    def take(self, messages, actions, now):
        """Record one step of the scheduler, and check it."""
        self.now = now
        arrived = {message.request.id for message in messages if isinstance(message, Submit)}
        self.check_actions(actions, self.expected_drops(messages), arrived)
        self.check_rest(progress_only=all(isinstance(message, Progress) for message in messages))

    def of(self, where):
        return [id for id, entry in self.entries.items() if entry.where == where]

    def batches(self):
        """Return the batches on static engines, each with the id of a request that is not there."""
        engines = [engine for engine in self.engines.values() if engine.state.static and engine.running]
        return [(*sorted(engine.running), "unknown") for engine in engines]

    def expected_drops(self, messages):
        """Record the messages; return the drops that must follow from them, in order."""
        drops = []
        for message in messages:
            match message:
                case Submit(request):
                    output_tokens = round(request.length.mean() * self.biases[request.model].factor)
                    tokens = request.prompt_tokens + output_tokens * request.sequences
                    self.entries[request.id] = Entry(request, "waiting", tokens)
                case Finished(id, output_tokens):
                    entry = self.entries[id]
                    if entry.where == "running" and output_tokens:
                        request = entry.request
                        self.biases[request.model].learn_one(request.length.mean(), output_tokens / request.sequences)
                    self.move(id, "finished")
                case Returned(id, full) if self.entries[id].where == "running":
                    drops += self.returned(id, full)
                case OutOfMemory(ids):
                    drops += self.halved(
                        [id for id in ids if id in self.entries and self.entries[id].where == "running"]
                    )
                case BackendObserved(state):
                    self.engines.setdefault(state.name, Engine(state)).observe(state)
                case BackendRemoved(name):
                    self.engines.pop(name, None)
                case Reconfigure(policy, limits):
                    self.policy, self.limits = policy or self.policy, limits or self.limits
        return drops

    def returned(self, id, full):
        entry = self.entries[id]
        if full:
            entry.engine.full_until_s = self.now + FULL_BACKOFF_S
        else:
            entry.failed_on.add(entry.engine.state.name)
        left = [
            name
            for name, engine in self.engines.items()
            if engine.serves(entry.request.model) and name not in entry.failed_on
        ]
        hopeless = entry.failed_on and not left
        self.move(id, "dropped" if hopeless else "waiting")
        return [(id, DropReason.BACKENDS_FAILED)] if hopeless else []

    def halved(self, ids):
        if len(ids) == 1:
            return self.returned(ids[0], full=False)
        ids.sort(key=lambda id: self.entries[id].request.length.mean())
        for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
            number = next(self.halves)
            for id in half:
                self.entries[id].half = number
                self.move(id, "waiting")
        return []

    def move(self, id, where, engine=None):
        entry = self.entries[id]
        if entry.where in ("dropped", "finished"):
            return
        if entry.engine is not None:
            entry.engine.running.discard(id)
            entry.engine.trials.discard(id)
        entry.where, entry.engine = where, engine
        if engine is not None:
            engine.running.add(id)
            if engine.state.trial_limit is not None:
                engine.trials.add(id)

    def check_actions(self, actions, drops, arrived):
        failed = [(a.id, a.reason) for a in actions if isinstance(a, Drop) and a.reason == DropReason.BACKENDS_FAILED]
        assert failed == drops
        assert len({action.id for action in actions}) == len(actions)
        sent = {}
        for action in actions:
            match action:
                case Drop(id, DropReason.QUEUE_TIMEOUT):
                    assert self.entries[id].where == "waiting"
                    assert self.entries[id].request.deadline_s <= self.now
                    self.move(id, "dropped")
                case Drop(id, DropReason.QUEUE_FULL):
                    assert id in arrived
                    assert self.over_the_limits()
                    self.move(id, "dropped")
                case Dispatch(id, name, batch):
                    entry, engine = self.entries[id], self.engines[name]
                    idle = not engine.running
                    self.check_dispatch(entry, engine, name, [self.entries[other] for other in sent.get(name, ())])
                    self.move(id, "running", engine)
                    sent.setdefault(name, []).append(id)
                    assert not batch or (id in batch and len(batch) > 1 and engine.state.static)
                    assert not engine.state.static or idle or len(sent[name]) > 1
        for name, ids in sent.items():
            self.check_memory(self.engines[name], name, [self.entries[id] for id in ids])
        for action in actions:
            if isinstance(action, Dispatch) and action.batch:
                assert set(action.batch) == set(sent[action.backend])
        # A request that was queued stays queued, even if others are put back.
        assert not self.over_the_limits() or not arrived & set(self.of("waiting"))

    def waiting_tokens(self):
        return sum(self.entries[id].tokens for id in self.of("waiting"))

    def over_the_limits(self):
        waiting = len(self.of("waiting"))
        return waiting > self.limits.max_requests or self.waiting_tokens() > self.limits.max_tokens

    def check_dispatch(self, entry, engine, name, sent):
        request = entry.request
        assert entry.where == "waiting"
        assert engine.serves(request.model)
        assert name not in entry.failed_on
        assert engine.full_until_s <= self.now
        if sent and self.policy.homogeneous and request.model == sent[0].request.model:
            return  # followers go with the first request, whichever is the most urgent
        if sent and engine.state.static:
            assert request.batch_key == sent[0].request.batch_key
            assert entry.half == sent[0].half
            return
        others = [self.entries[id] for id in self.of("waiting")]
        if isinstance(self.policy, Fcfs):
            overtaken = [o for o in others if self.goes_before(o.request, request) and not o.half and not entry.half]
            assert all(name in other.failed_on for other in overtaken)

    def goes_before(self, one, other):
        """Return whether one request goes first under FCFS; overdue requests are left to the tests of the queue."""
        if one.model != other.model or is_overdue(one, self.now) or is_overdue(other, self.now):
            return False
        return (one.priority, one.arrival_s) < (other.priority, other.arrival_s)

    def check_memory(self, engine, name, sent):
        state, load = engine.state, self.scheduler._loads[name]
        members = [self.entries[id].request for id in engine.running]
        assert state.trial_limit is None or len(engine.trials) <= state.trial_limit
        if state.static:
            assert set(engine.running) == {entry.request.id for entry in sent}
            plan = PlannedBatch.of(members[0], self.now)
            for request in members[1:]:
                plan = plan.joined_by(PlannedBatch.of(request, self.now))
            assert len(members) == 1 or plan.fits(StaticLimits(state.kv_capacity_tokens, state.max_concurrency))
            return
        bounded = len(engine.running) > 1
        assert not bounded or len(engine.running) <= load.max_num_seqs.limit(state.max_concurrency)
        if bounded and state.kv_capacity_tokens and not any(engine.rejects(request) for request in members):
            newest = sent[-1].request
            length = newest.length.scaled(self.biases[newest.model].factor)
            steps = np.zeros(len(load.ledger.forecast(newest, length).mean))
            assert load.ledger.has_room(Curve(steps, steps), load.budget_tokens + 0.5)

    def check_rest(self, progress_only):
        assert self.scheduler.waiting == len(self.of("waiting"))
        assert self.scheduler.waiting_tokens == self.waiting_tokens()
        assert self.scheduler.running == len(self.of("running"))
        assert sum(self.scheduler.waiting_by_class().values()) == self.scheduler.waiting
        for name, engine in self.engines.items():
            assert self.scheduler.in_flight(name) == len(engine.running)
        waiting = [self.entries[id] for id in self.of("waiting")]
        assert all(entry.request.deadline_s > self.now for entry in waiting)
        assert self.scheduler.oldest_arrival_s() == min((e.request.arrival_s for e in waiting), default=None)
        if progress_only:
            return
        self.check_explanations()
        for name, engine in self.engines.items():
            idle = not engine.running and engine.full_until_s <= self.now
            assert not idle or not any(engine.serves(e.request.model) and name not in e.failed_on for e in waiting)

    def check_explanations(self):
        """After a step that may dispatch, each request that waits has a reason against every backend."""
        blocked = {}
        for explanation in self.scheduler.explain(self.now):
            entry = self.entries[explanation.request_id]
            assert entry.where == "waiting"
            assert explanation.model == entry.request.model
            assert explanation.waited_s == self.now - entry.request.arrival_s
            assert explanation.reasons.keys() == self.engines.keys()
            for name, reason in explanation.reasons.items():
                self.check_reason(entry, name, reason)
            blocked.setdefault(entry.request.model, []).append(set(self.engines) - entry.failed_on)
        for entry in (self.entries[id] for id in self.of("waiting")):
            # A request that is not explained waits because more urgent ones wait for every backend that it may go to.
            assert entry.failed_on.union(*blocked[entry.request.model]) >= set(self.engines)

    def check_reason(self, entry, name, reason):
        engine, request = self.engines[name], entry.request
        assert (reason is WaitReason.OTHER_MODEL) == (request.model not in engine.state.models)
        if reason is not WaitReason.OTHER_MODEL:
            assert (reason is WaitReason.FAILED) == (name in entry.failed_on)
        match reason:
            case WaitReason.UNHEALTHY:
                assert not engine.state.healthy
            case WaitReason.FULL:
                assert engine.full_until_s > self.now
            case WaitReason.TRIAL_LIMIT:
                assert len(engine.trials) >= engine.state.trial_limit
            case WaitReason.BATCH:
                assert engine.state.static
                assert engine.running
            case WaitReason.MAX_NUM_SEQS | WaitReason.MEMORY:
                assert engine.running
