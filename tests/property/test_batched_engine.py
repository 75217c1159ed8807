"""`BatchedStepEngine` behaves like `ContinuousEngine` at every step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulator.engine import ContinuousEngine, FcfsQueue, PagedKV, PriorityQueue, Sequence, StepTime
from backends.simulator.engine.advance import SteppedEngine
from backends.simulator.engine.batched import BatchedStepEngine
from backends.simulator.engine.prefix_cache import PrefixCachingKV

STEP_TIME = StepTime(a=1.0, b=0.1, c=0.001, d=0.01)
QUEUES = {"fcfs": FcfsQueue, "priority": PriorityQueue}

LENGTHS = st.tuples(st.integers(1, 150), st.integers(1, 120), st.integers(1, 120), st.integers(-2, 2))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), LENGTHS),
        st.tuples(st.just("step"), st.integers(1, 30)),
        st.tuples(st.just("decode"), st.tuples(st.integers(1, 40), st.integers(0, 39))),
    )
)
MEMORY = st.tuples(st.integers(30, 80), st.sampled_from([4, 8, 16]))
MEMORIES = st.sampled_from([PagedKV, PrefixCachingKV])
LIMITS = st.fixed_dictionaries({"max_num_seqs": st.integers(1, 9), "max_num_batched_tokens": st.integers(5, 400)})


class Twins:
    """One engine of each kind with the same input."""

    def __init__(self, queue, memory, limits, progress_tokens, kind=PrefixCachingKV):
        stepping_kv, batched_kv = kind(*memory), kind(*memory)
        self.stepping = ContinuousEngine(STEP_TIME, stepping_kv, queue(), **limits)
        self.batched = BatchedStepEngine(STEP_TIME, batched_kv, queue(), **limits, progress_tokens=progress_tokens)
        self.stepped = SteppedEngine(self.stepping, progress_tokens)
        self.submitted = 0

    def submit(self, lengths):
        prompt, output, limit, priority = lengths
        sequence = Sequence(self.submitted, prompt, output, limit, priority, arrival_s=float(self.submitted))
        if sequence.final_tokens > self.stepping.kv_capacity_tokens:
            return
        self.submitted += 1
        self.stepped.submit(sequence)
        self.batched.submit(sequence)

    def advance(self):
        expected, actual = self.stepped.advance(), self.batched.advance()
        assert actual.duration_s == expected.duration_s
        assert (actual.tokens, actual.kv_token_s) == (expected.tokens, expected.kv_token_s)
        assert dict(actual.grown) == dict(expected.grown)
        for name in ("first", "finished", "preempted", "failed"):
            assert list(getattr(actual, name)) == list(getattr(expected, name))
        self.compare()

    def compare(self):
        for name in ("running", "waiting", "kv_used_tokens", "kv_capacity_tokens", "preemptions"):
            assert getattr(self.batched, name) == getattr(self.stepped, name)

    def decode(self, most, some):
        """Run some of the steps that `upcoming` predicts: together in one engine, one by one in the other."""
        durations = self.batched.upcoming(most)
        steps = durations[: 1 + some % len(durations)] if durations else []
        if not steps:
            return
        actual, grown, tokens, kv_token_s, total_s = self.batched.decode(len(steps)), {}, 0, 0.0, 0.0
        for number, duration_s in enumerate(steps, start=1):
            expected = self.stepped.advance()
            assert expected.duration_s == duration_s
            assert not expected.first
            assert not expected.preempted
            grown.update(expected.grown)
            tokens, kv_token_s = tokens + expected.tokens, kv_token_s + expected.kv_token_s
            total_s += duration_s
            assert number == len(steps) or not expected.finished
        assert actual.duration_s == total_s
        assert (actual.tokens, actual.kv_token_s) == (tokens, kv_token_s)
        assert dict(actual.grown) == {id: grown[id] for id in grown if id not in expected.finished}
        assert list(actual.finished) == list(expected.finished)
        self.compare()


@pytest.mark.parametrize("queue", QUEUES)
@given(actions=ACTIONS, memory=MEMORY, limits=LIMITS, kind=MEMORIES, progress_tokens=st.sampled_from([1, 3, 16]))
@settings(deadline=None, max_examples=150)
def test_batched_steps_equal_single_steps(queue, actions, memory, limits, kind, progress_tokens):
    twins = Twins(QUEUES[queue], memory, limits, progress_tokens, kind)
    for action, argument in actions:
        if action == "submit":
            twins.submit(argument)
        elif action == "decode":
            twins.decode(*argument)
        else:
            for _ in range(argument):
                twins.advance()
    while twins.stepping.running or twins.stepping.waiting:
        twins.advance()

    assert twins.batched.kv_used_tokens == 0


@given(lengths=st.lists(LENGTHS, min_size=2, max_size=10), aborted=st.integers(0, 9), at=st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_state_after_an_abort_is_equal(lengths, aborted, at):
    twins = Twins(FcfsQueue, (60, 8), {"max_num_seqs": 8, "max_num_batched_tokens": 300}, 16)
    for one in lengths:
        twins.submit(one)
    for _ in range(at):
        twins.advance()
    assert twins.batched.abort(aborted) == twins.stepping.abort(aborted)
    while twins.stepping.running or twins.stepping.waiting:
        twins.advance()


def test_generated_cases_include_preemptions_and_chunks():
    """The generators above are useful only if they reach the rare paths."""
    twins = Twins(FcfsQueue, (60, 8), {"max_num_seqs": 8, "max_num_batched_tokens": 64}, 16)
    for _ in range(6):
        twins.submit((100, 100, 120, 0))
    chunks = 0
    while twins.stepping.running or twins.stepping.waiting:
        twins.advance()
        chunks += bool(twins.batched._running)

    assert twins.batched.preemptions > 0
    assert chunks > 0
