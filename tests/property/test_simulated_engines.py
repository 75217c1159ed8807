"""For any submits, aborts and steps: memory is never exceeded, and every sequence ends once with all its tokens."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulator.config import EngineConfig, build_engine
from backends.simulator.engine import Sequence

CONFIGS = {
    "paged": EngineConfig(kv_tokens=320, block_size=8, max_num_seqs=6, max_num_batched_tokens=48),
    "priority": EngineConfig(kv_tokens=320, block_size=8, max_num_batched_tokens=48, scheduling_policy="priority"),
    "reserving": EngineConfig(kind="tgi", kv_tokens=320, max_num_batched_tokens=48),
    "static": EngineConfig(kind="static", kv_tokens=320, max_batch_size=4),
}

LENGTHS = st.tuples(st.integers(1, 160), st.integers(1, 120), st.integers(1, 120), st.integers(-2, 2))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), LENGTHS), st.tuples(st.just("abort"), st.integers(0, 30)), st.just(("step", 0))
    ),
    max_size=80,
)


class Ledger:
    """An engine as its client observes it, and the invariants that must hold."""

    def __init__(self, config):
        self.engine = build_engine(config)
        self.sequences = {}
        self.tokens = Counter()
        self.live = set()
        self.finished = set()
        self.preempted = 0

    def submit(self, lengths):
        prompt, output, limit, priority = lengths
        sequence = Sequence(len(self.sequences), prompt, output, limit, priority, arrival_s=float(len(self.sequences)))
        self.sequences[sequence.id] = sequence
        self.engine.submit(sequence)
        self.live.add(sequence.id)

    def abort(self, sequence_id):
        assert self.engine.abort(sequence_id) == (sequence_id in self.live)
        self.live.discard(sequence_id)

    def step(self):
        busy = bool(self.live)
        result = self.engine.step()
        assert (result.duration_s > 0) == busy
        self.tokens.update(result.emitted)
        self.preempted += len(result.preempted)
        ended = {*result.finished, *result.failed}
        assert ended <= self.live
        assert {*result.emitted, *result.first, *result.preempted} <= self.live
        self.live -= ended
        self.finished.update(result.finished)
        self.check()

    def check(self):
        assert 0 <= self.engine.kv_used_tokens <= self.engine.kv_capacity_tokens
        assert self.engine.running + self.engine.waiting == len(self.live)
        assert self.engine.preemptions == self.preempted
        if not self.live:
            assert self.engine.kv_used_tokens == 0


@pytest.mark.parametrize("kind", CONFIGS)
@given(actions=ACTIONS)
@settings(deadline=None, max_examples=60)
def test_every_sequence_ends_once_within_the_memory(kind, actions):
    ledger = Ledger(CONFIGS[kind])
    for action, argument in actions:
        if action == "submit":
            ledger.submit(argument)
        elif action == "abort":
            ledger.abort(argument)
        else:
            ledger.step()
    while ledger.live:
        ledger.step()

    if kind != "static":
        assert all(ledger.tokens[id] == ledger.sequences[id].answer_tokens for id in ledger.finished)


@given(lengths=st.lists(LENGTHS, min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_each_sequence_gets_one_first_token_however_often_it_is_preempted(lengths):
    engine = build_engine(CONFIGS["paged"])
    for index, (prompt, output, limit, _) in enumerate(lengths):
        engine.submit(Sequence(index, prompt, output, limit))
    first = Counter()
    while engine.running or engine.waiting:
        first.update(engine.step().first)

    assert first == Counter(range(len(lengths)))
