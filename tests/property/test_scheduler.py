"""For any messages in any order: no request is lost or sent twice, every bound holds, and explanations are true.

`scheduler_book` records every message and every action, and checks the properties.
"""

import itertools
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import (
    BackendObserved,
    BackendRemoved,
    BackendState,
    Finished,
    Message,
    OutOfMemory,
    Prefix,
    Progress,
    QueueLimits,
    Reconfigure,
    Request,
    Returned,
    Submit,
    Tick,
)
from gateway.scheduling.policies import Fcfs, Hrrn, Sjf, policy_named
from gateway.scheduling.scheduler import FULL_BACKOFF_S, Scheduler
from tests.property.scheduler_book import MODELS, Book

NAMES = ("gpu-0", "gpu-1", "gpu-2")
TIMEOUT_S = 20.0

states = st.builds(
    BackendState,
    name=st.sampled_from(NAMES),
    models=st.sampled_from([MODELS, MODELS, MODELS[:1], MODELS[1:]]).map(frozenset),
    healthy=st.sampled_from([True, True, True, True, True, False]),
    kv_capacity_tokens=st.sampled_from([None, 500, 1000, 1000]),
    kv_used_tokens=st.sampled_from([None, None, 0, 300]),
    kv_block_tokens=st.sampled_from([1, 16]),
    max_concurrency=st.sampled_from([None, 1, 1, 2, 4]),
    max_model_len=st.sampled_from([None, None, 350]),
    running=st.sampled_from([None, 0, 1, 3]),
    waiting=st.sampled_from([None, 0, 2]),
    preemptions=st.sampled_from([None, 0, 5, 50]),
    static=st.sampled_from([False, False, True]),
    reserving=st.sampled_from([False, False, True]),
    trial_limit=st.sampled_from([None, None, None, 1, 2]),
)
at_once = st.sampled_from([True, True, True, False])
lengths = st.tuples(st.integers(1, 400), st.sampled_from([None, 20, 200])).map(
    lambda drawn: LengthQuantiles.of((drawn[0], *(drawn[0] * 2,) * 5), cap=drawn[1])
)
limits = st.builds(QueueLimits, st.sampled_from([0, 5, 100, 100]), st.sampled_from([500, 3000, 10**6, 10**6]))
policies = st.sampled_from([Fcfs(), Sjf(), Hrrn(), Hrrn(0.5), policy_named("magnus")])


class CheckedScheduler(Scheduler):
    """A scheduler that compares its explanations before each dispatch with what it then dispatches."""

    def _dispatch(self, now):
        open_to = {each.request_id: self.open_to(each) for each in self.explain(now)}
        actions = list(super()._dispatch(now))
        assert bool(actions) == any(open_to.values())
        assert not actions or actions[0].backend in open_to[actions[0].id]
        # The first dispatch of a model had no reason against it: the dispatches before it can only take memory away.
        firsts = {self._running[action.id].waiting.request.model: action for action in reversed(actions)}
        for first in firsts.values():
            assert first.backend in open_to[first.id]
        return actions

    def open_to(self, explanation):
        return set(self._loads) - set(explanation.reasons)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(policy=policies, limits=limits, engines=st.lists(states, min_size=1, max_size=4))
    def start(self, policy, limits, engines):
        self.now, self.steps = 0.0, 0
        self.scheduler = CheckedScheduler(policy, limits)
        self.book = Book(self.scheduler, policy, limits)
        self.numbers = itertools.count()
        self.inbox: list[Message] = [BackendObserved(state) for state in engines]
        self.step()

    # Messages

    def post(self, message, at_once=True):
        """Send a message to the scheduler now, or together with the next one."""
        self.inbox.append(message)
        if at_once:
            self.step()

    @rule(
        model=st.sampled_from(MODELS),
        prompt=st.integers(1, 400),
        length=lengths,
        sequences=st.sampled_from([1, 1, 1, 3]),
        body_s=st.sampled_from([0.0, 0.0, 0.0, 0.5, 3.0]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        prefix=st.sampled_from([(), (), (Prefix(1, 50),), (Prefix(2, 90), Prefix(1, 50))]),
        batch_key=st.sampled_from([None, 1, 1, 2]),
        count=st.integers(1, 6),
        at_once=at_once,
    )
    def submit(self, model, prompt, length, sequences, body_s, priority, prefix, batch_key, count, at_once):
        at_s = self.now - body_s
        for _ in range(count):
            what = f"r{next(self.numbers)}", model, prompt, length, at_s, at_s + TIMEOUT_S
            self.post(Submit(Request(*what, sequences, priority, prefix, batch_key)), at_once)

    @precondition(lambda self: self.book.of("running"))
    @rule(data=st.data(), output_tokens=st.integers(1, 600))
    def finish(self, data, output_tokens):
        self.post(Finished(data.draw(st.sampled_from(self.book.of("running"))), output_tokens))

    @precondition(lambda self: self.book.of("running"))
    @rule(data=st.data(), full=st.booleans(), at_once=at_once)
    def give_back(self, data, full, at_once):
        self.post(Returned(data.draw(st.sampled_from(self.book.of("running"))), full), at_once)

    @precondition(lambda self: self.book.of("running"))
    @rule(data=st.data(), output_tokens=st.integers(0, 600), at_once=at_once)
    def grow(self, data, output_tokens, at_once):
        self.post(Progress(data.draw(st.sampled_from(self.book.of("running"))), output_tokens), at_once)

    @precondition(lambda self: self.book.entries)
    @rule(data=st.data(), output_tokens=st.none() | st.integers(1, 2000), at_once=at_once)
    def finish_or_leave(self, data, output_tokens, at_once):
        self.post(Finished(data.draw(st.sampled_from(sorted(self.book.entries))), output_tokens), at_once)

    @precondition(lambda self: self.book.batches())
    @rule(data=st.data(), at_once=at_once)
    def run_out_of_memory(self, data, at_once):
        self.post(OutOfMemory(data.draw(st.sampled_from(self.book.batches()))), at_once)

    @precondition(lambda self: self.book.entries)
    @rule(
        data=st.data(),
        message=st.sampled_from([lambda id: Progress(id, 7), lambda id: Returned(id, full=False)]),
    )
    def report_any_request(self, data, message):
        self.post(message(data.draw(st.sampled_from(sorted(self.book.entries)))))

    @precondition(lambda self: self.steps % 2 == 0)
    @rule(state=states, at_once=at_once)
    def scrape(self, state, at_once):
        self.post(BackendObserved(state), at_once)

    @precondition(lambda self: self.book.engines and self.steps % 2)
    @rule(data=st.data(), age_s=st.sampled_from([None, 0.0, 60.0]), healthy=st.sampled_from([True, True, False]))
    def scrape_the_same(self, data, age_s, healthy):
        """Scrape an engine whose metrics do not change, or that was unreachable and is unchanged."""
        state = data.draw(st.sampled_from(sorted(self.book.engines.items())))[1].state
        self.post(
            BackendObserved(replace(state, healthy=healthy, scraped_s=None if age_s is None else self.now - age_s))
        )

    @precondition(lambda self: self.steps % 4 == 0)
    @rule(name=st.sampled_from(NAMES), at_once=at_once)
    def remove(self, name, at_once):
        self.post(BackendRemoved(name), at_once)

    @precondition(lambda self: self.steps % 4 == 1)
    @rule(policy=st.none() | policies, limits=st.none() | limits, at_once=at_once)
    def reconfigure(self, policy, limits, at_once):
        self.post(Reconfigure(policy, limits), at_once)

    @rule(seconds=st.sampled_from([0.1, 0.1, FULL_BACKOFF_S, FULL_BACKOFF_S, 1.0, 10.0]))
    def step(self, seconds=0.0):
        self.steps += 1
        wake_at_s = self.scheduler.wake_at_s(self.now)
        self.now += seconds
        messages, self.inbox = self.inbox or [Tick()], []
        if wake_at_s is not None and wake_at_s <= self.now:
            messages.append(Tick())
        actions = self.scheduler.step(messages, self.now)
        self.book.take(messages, actions, self.now)

    @invariant()
    def wake_time_is_in_the_future(self):
        if not self.inbox:
            wake_at_s = self.scheduler.wake_at_s(self.now)
            assert wake_at_s is None or wake_at_s > self.now
            assert (wake_at_s is not None) == bool(self.book.of("waiting"))

    def teardown(self):
        """Check that every request comes to an end."""
        self.step()
        for id in self.book.of("running"):
            self.inbox.append(Finished(id))
        self.step(TIMEOUT_S)
        for id in self.book.of("running"):
            self.inbox.append(Finished(id))
        self.step()
        assert {entry.where for entry in self.book.entries.values()} <= {"dropped", "finished"}
        assert (self.scheduler.waiting, self.scheduler.waiting_tokens, self.scheduler.running) == (0, 0, 0)
        assert all(self.scheduler.backend_status(name).kv_held_tokens == 0 for name in self.book.engines)


SchedulerMachine.TestCase.settings = settings(max_examples=70, stateful_step_count=30, deadline=None)
TestScheduler = SchedulerMachine.TestCase
