"""The engine that counts once for all does, step by step, what the engine that counts for each does."""

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
    """One engine of each kind, told the same."""

    def __init__(self, queue, memory, limits, progress_tokens, kind=PrefixCachingKV):
        stepping_kv, lazy_kv = kind(*memory), kind(*memory)
        self.stepping = ContinuousEngine(STEP_TIME, stepping_kv, queue(), **limits)
        self.lazy = BatchedStepEngine(STEP_TIME, lazy_kv, queue(), **limits, progress_tokens=progress_tokens)
        self.stepped = SteppedEngine(self.stepping, progress_tokens)
        self.submitted = 0

    def submit(self, lengths):
        prompt, output, limit, priority = lengths
        sequence = Sequence(self.submitted, prompt, output, limit, priority, arrival_s=float(self.submitted))
        if sequence.final_tokens > self.stepping.kv_capacity_tokens:
            return
        self.submitted += 1
        self.stepped.submit(sequence)
        self.lazy.submit(sequence)

    def advance(self):
        expected, told = self.stepped.advance(), self.lazy.advance()
        assert told.duration_s == expected.duration_s
        assert (told.tokens, told.kv_token_s) == (expected.tokens, expected.kv_token_s)
        assert dict(told.grown) == dict(expected.grown)
        for name in ("first", "finished", "preempted", "failed"):
            assert list(getattr(told, name)) == list(getattr(expected, name))
        self.compare()

    def compare(self):
        for name in ("running", "waiting", "kv_used_tokens", "kv_capacity_tokens", "preemptions"):
            assert getattr(self.lazy, name) == getattr(self.stepped, name)

    def decode(self, most, some):
        """Look ahead, run some of the steps foretold at once, and the same ones singly."""
        durations = self.lazy.upcoming(most)
        steps = durations[: 1 + some % len(durations)] if durations else []
        if not steps:
            return
        told, grown, tokens, kv_token_s, total_s = self.lazy.decode(len(steps)), {}, 0, 0.0, 0.0
        for number, duration_s in enumerate(steps, start=1):
            expected = self.stepped.advance()
            assert expected.duration_s == duration_s
            assert not expected.first
            assert not expected.preempted
            grown.update(expected.grown)
            tokens, kv_token_s = tokens + expected.tokens, kv_token_s + expected.kv_token_s
            total_s += duration_s
            assert number == len(steps) or not expected.finished
        assert told.duration_s == total_s
        assert (told.tokens, told.kv_token_s) == (tokens, kv_token_s)
        assert dict(told.grown) == {id: grown[id] for id in grown if id not in expected.finished}
        assert list(told.finished) == list(expected.finished)
        self.compare()


@pytest.mark.parametrize("queue", QUEUES)
@given(actions=ACTIONS, memory=MEMORY, limits=LIMITS, kind=MEMORIES, progress_tokens=st.sampled_from([1, 3, 16]))
@settings(deadline=None, max_examples=150)
def test_lazy_steps_are_the_steps(queue, actions, memory, limits, kind, progress_tokens):
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

    assert twins.lazy.kv_used_tokens == 0


@given(lengths=st.lists(LENGTHS, min_size=2, max_size=10), aborted=st.integers(0, 9), at=st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_an_abort_leaves_the_same_behind(lengths, aborted, at):
    twins = Twins(FcfsQueue, (60, 8), {"max_num_seqs": 8, "max_num_batched_tokens": 300}, 16)
    for one in lengths:
        twins.submit(one)
    for _ in range(at):
        twins.advance()
    assert twins.lazy.abort(aborted) == twins.stepping.abort(aborted)
    while twins.stepping.running or twins.stepping.waiting:
        twins.advance()


def test_preemptions_and_chunks_are_among_what_is_compared():
    """The generators above are of no use if they never reach the rare paths."""
    twins = Twins(FcfsQueue, (60, 8), {"max_num_seqs": 8, "max_num_batched_tokens": 64}, 16)
    for _ in range(6):
        twins.submit((100, 100, 120, 0))
    chunks = 0
    while twins.stepping.running or twins.stepping.waiting:
        twins.advance()
        chunks += bool(twins.lazy._running)

    assert twins.lazy.preemptions > 0
    assert chunks > 0
