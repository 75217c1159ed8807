"""The predicted peak is what a step-by-step run of the same requests would reach."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.kv_ledger import KvLedger
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request


@dataclass(frozen=True)
class Running:
    """A request, and how far each of its sequences is."""

    request: Request
    generated: int

    @property
    def to_come(self):
        return max(0, self.request.length.cap - self.generated)

    @property
    def output(self):
        return self.generated * self.request.sequences


@st.composite
def running(draw):
    length = LengthQuantiles.of((1e9,) * 6, cap=draw(st.integers(1, 40)))  # the cap makes it certain
    id = draw(st.uuids()).hex
    request = Request(id, "m", draw(st.integers(1, 60)), length, 0.0, 1.0, sequences=draw(st.integers(1, 3)))
    return Running(request, draw(st.integers(0, 45)))


batches = st.lists(running(), max_size=8)


def simulated_peak(batch):
    """Let every sequence grow by one token a step until it has all of them; its memory is free from then on."""
    return max(
        sum(
            each.request.prompt_tokens + each.output + step * each.request.sequences
            for each in batch
            if each.to_come >= step
        )
        for step in range(42)
    )


def ledger_of(batch):
    ledger = KvLedger()
    for each in batch:
        ledger.admit(each.request)
        ledger.grow(each.request.id, each.output)
    return ledger


@given(batches)
def test_the_peak_is_that_of_a_simulated_run(batch):
    assert abs(ledger_of(batch).peak_tokens() - simulated_peak(batch)) < 1e-6


@given(batches, running())
def test_a_candidate_counts_as_if_it_were_admitted(batch, newcomer):
    candidate = Running(newcomer.request, 0)
    assert abs(ledger_of(batch).peak_tokens(candidate.request) - simulated_peak([*batch, candidate])) < 1e-6


@given(batches.flatmap(lambda batch: st.tuples(st.just(batch), st.permutations(batch))))
def test_the_order_of_admission_does_not_matter(orders):
    first, second = map(ledger_of, orders)
    assert first.held_tokens == second.held_tokens
    assert abs(first.peak_tokens() - second.peak_tokens()) < 1e-6


@given(batches, st.data())
def test_what_is_held_is_what_the_running_ones_have(batch, data):
    ledger = ledger_of(batch)
    gone = data.draw(st.lists(st.sampled_from(batch), unique_by=lambda each: each.request.id)) if batch else []
    for each in gone:
        ledger.release(each.request.id)
    left = [each for each in batch if each not in gone]
    assert len(ledger) == len(left)
    assert ledger.held_tokens == sum(each.request.prompt_tokens + each.output for each in left)
    assert ledger.peak_tokens() >= ledger.held_tokens
