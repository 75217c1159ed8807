"""Whatever comes in whatever order: nothing is lost or sent twice, and every bound holds.

The machine keeps its own book of who is where, from the messages it sent and the actions it got.
"""

import itertools
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    BackendGone,
    BackendSeen,
    BackendState,
    Dispatch,
    Drop,
    Finished,
    Progress,
    Reason,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.scheduler import FULL_BACKOFF_S, Scheduler
from gateway.scheduling.target import START

MODELS = ("llama", "mistral")
NAMES = ("gpu-0", "gpu-1", "gpu-2")
TIMEOUT_S = 20.0

states = st.builds(
    BackendState,
    name=st.sampled_from(NAMES),
    models=st.sets(st.sampled_from(MODELS), min_size=1).map(frozenset),
    healthy=st.sampled_from([True, True, True, False]),
    kv_capacity_tokens=st.sampled_from([None, 500, 1000]),
    kv_used_tokens=st.sampled_from([None, None, 0, 300]),
    kv_block_tokens=st.sampled_from([1, 16]),
    max_concurrency=st.sampled_from([None, 1, 2, 4]),
    max_model_len=st.sampled_from([None, None, 350]),
)
at_once = st.sampled_from([True, True, True, False])
lengths = st.tuples(st.integers(1, 400), st.sampled_from([None, 20, 200])).map(
    lambda drawn: LengthQuantiles.of((drawn[0], *(drawn[0] * 2,) * 5), cap=drawn[1])
)


@dataclass(eq=False)
class Engine:
    """A backend since it was last added; what runs on an earlier one of its name is not its own."""

    state: BackendState
    running: set[str] = field(default_factory=set)
    full_until_s: float = 0.0

    def serves(self, model):
        return self.state.healthy and model in self.state.models

    def refuses(self, request):
        limit = self.state.max_model_len
        return limit is not None and request.prompt_tokens >= limit


@dataclass(eq=False)
class Entry:
    """A request and where it is: waiting, running, dropped or finished."""

    request: Request
    where: str
    engine: Engine | None = None
    failed_on: set[str] = field(default_factory=set)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(max_queue=st.integers(1, 8), engines=st.lists(states, min_size=1, max_size=4))
    def start(self, max_queue, engines):
        self.now = 0.0
        self.max_queue = max_queue
        self.scheduler = Scheduler(max_queue)
        self.book: dict[str, Entry] = {}
        self.engines: dict[str, Engine] = {}
        self.numbers = itertools.count()
        self.inbox = []
        for state in engines:
            self.inbox.append(BackendSeen(state))
        self.step()

    # What happens

    def tell(self, message, at_once=True):
        """Tell the scheduler now, or with what comes next."""
        self.inbox.append(message)
        if at_once:
            self.step()

    @rule(
        model=st.sampled_from(MODELS),
        prompt=st.integers(1, 400),
        length=lengths,
        sequences=st.sampled_from([1, 1, 1, 3]),
        body_s=st.sampled_from([0.0, 0.0, 0.0, 1.0, 5.0]),
        count=st.integers(1, 4),
        at_once=at_once,
    )
    def submit(self, model, prompt, length, sequences, body_s, count, at_once):
        arrival_s = self.now - body_s
        for _ in range(count):
            id = f"r{next(self.numbers)}"
            self.tell(Submit(Request(id, model, prompt, length, arrival_s, arrival_s + TIMEOUT_S, sequences)), at_once)

    @precondition(lambda self: self.of("running"))
    @rule(data=st.data(), full=st.booleans(), at_once=at_once)
    def give_back(self, data, full, at_once):
        self.tell(Returned(data.draw(st.sampled_from(self.of("running"))), full), at_once)

    @precondition(lambda self: self.of("running"))
    @rule(data=st.data(), output_tokens=st.integers(0, 600), at_once=at_once)
    def grow(self, data, output_tokens, at_once):
        self.tell(Progress(data.draw(st.sampled_from(self.of("running"))), output_tokens), at_once)

    @precondition(lambda self: self.book)
    @rule(data=st.data(), at_once=at_once)
    def finish_or_leave(self, data, at_once):
        self.tell(Finished(data.draw(st.sampled_from(sorted(self.book)))), at_once)

    @precondition(lambda self: self.book)
    @rule(data=st.data(), message=st.sampled_from([lambda id: Progress(id, 7), lambda id: Returned(id, False)]))
    def hear_of_any_request(self, data, message):
        self.tell(message(data.draw(st.sampled_from(sorted(self.book)))))

    @rule(state=states, at_once=at_once)
    def see(self, state, at_once):
        self.tell(BackendSeen(state), at_once)

    @rule(name=st.sampled_from(NAMES), at_once=at_once)
    def lose(self, name, at_once):
        self.tell(BackendGone(name), at_once)

    @rule(seconds=st.sampled_from([0.1, FULL_BACKOFF_S, 1.0, 10.0]))
    def step(self, seconds=0.0):
        self.now += seconds
        messages, self.inbox = self.inbox or [Tick()], []
        actions = self.scheduler.step(messages, self.now)
        arrived = {message.request.id for message in messages if isinstance(message, Submit)}
        self.check_actions(actions, self.expected_drops(messages), arrived)
        self.check_rest()

    # What must come of it

    def of(self, where):
        return [id for id, entry in self.book.items() if entry.where == where]

    def expected_drops(self, messages):
        """Enter what the messages say into the book; return who must be dropped for it, in order."""
        drops = []
        for message in messages:
            match message:
                case Submit(request):
                    self.book[request.id] = Entry(request, "waiting")
                case Finished(id):
                    self.move(id, "finished")
                case Returned(id, full) if self.book[id].where == "running":
                    drops += self.returned(id, full)
                case BackendSeen(state):
                    self.engines.setdefault(state.name, Engine(state)).state = state
                case BackendGone(name):
                    self.engines.pop(name, None)
        return drops

    def returned(self, id, full):
        entry = self.book[id]
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
        return [(id, Reason.BACKENDS_FAILED)] if hopeless else []

    def move(self, id, where, engine=None):
        entry = self.book[id]
        if entry.where in ("dropped", "finished"):
            return
        if entry.engine is not None:
            entry.engine.running.discard(id)
        entry.where, entry.engine = where, engine
        if engine is not None:
            engine.running.add(id)

    def check_actions(self, actions, drops, arrived):
        failed = [(a.id, a.reason) for a in actions if isinstance(a, Drop) and a.reason == Reason.BACKENDS_FAILED]
        assert failed == drops
        for action in actions:
            match action:
                case Drop(id, Reason.QUEUE_TIMEOUT):
                    assert self.book[id].where == "waiting"
                    assert self.book[id].request.deadline_s <= self.now
                    self.move(id, "dropped")
                case Drop(id, Reason.QUEUE_FULL):
                    assert id in arrived
                    assert len(self.of("waiting")) > self.max_queue
                    self.move(id, "dropped")
                case Dispatch(id, name):
                    self.check_dispatch(self.book[id], self.engines[name], name)
                    self.move(id, "running", self.engines[name])
        for name in {action.backend for action in actions if isinstance(action, Dispatch)}:
            self.check_memory(self.engines[name], name)
        # Who was let in stays in, also where others are put back.
        assert len(self.of("waiting")) <= self.max_queue or not arrived & set(self.of("waiting"))

    def check_dispatch(self, entry, engine, name):
        assert entry.where == "waiting"
        assert engine.serves(entry.request.model)
        assert name not in entry.failed_on
        assert engine.full_until_s <= self.now
        overtaken = [
            other
            for other in map(self.book.get, self.of("waiting"))
            if other.request.model == entry.request.model and other.request.arrival_s < entry.request.arrival_s
        ]
        assert all(name in other.failed_on for other in overtaken)

    def check_memory(self, engine, name):
        limit, capacity = engine.state.max_concurrency, engine.state.kv_capacity_tokens
        assert limit is None or len(engine.running) <= limit
        refused = any(engine.refuses(self.book[id].request) for id in engine.running)
        if capacity is not None and len(engine.running) > 1 and not refused:
            assert self.scheduler.reserved_tokens(name) <= START * capacity + 0.5

    def check_rest(self):
        assert self.scheduler.waiting == len(self.of("waiting"))
        assert self.scheduler.running == len(self.of("running"))
        for name, engine in self.engines.items():
            assert self.scheduler.running_on(name) == len(engine.running)
        waiting = [self.book[id] for id in self.of("waiting")]
        assert all(entry.request.deadline_s > self.now for entry in waiting)
        assert self.scheduler.oldest_arrival_s() == min((e.request.arrival_s for e in waiting), default=None)
        for name, engine in self.engines.items():
            idle = not engine.running and engine.full_until_s <= self.now
            assert not idle or not any(engine.serves(e.request.model) and name not in e.failed_on for e in waiting)

    @invariant()
    def it_never_asks_to_be_woken_in_the_past(self):
        if not self.inbox:
            wake_at_s = self.scheduler.wake_at_s(self.now)
            assert wake_at_s is None or wake_at_s > self.now
            assert (wake_at_s is not None) == bool(self.of("waiting"))

    def teardown(self):
        """Everything that ever came in comes to an end."""
        self.step()
        for id in self.of("running"):
            self.inbox.append(Finished(id))
        self.step(TIMEOUT_S)
        for id in self.of("running"):
            self.inbox.append(Finished(id))
        self.step()
        assert {entry.where for entry in self.book.values()} <= {"dropped", "finished"}
        assert (self.scheduler.waiting, self.scheduler.running) == (0, 0)
        assert all(self.scheduler.reserved_tokens(name) == 0 for name in NAMES)


SchedulerMachine.TestCase.settings = settings(max_examples=70, stateful_step_count=30, deadline=None)
TestScheduler = SchedulerMachine.TestCase
