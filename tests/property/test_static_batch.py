"""A static batch is within its budget, contains its head, and has no request twice."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.scheduling.batch_time import StepSumTime
from gateway.scheduling.length import LengthQuantiles
from gateway.scheduling.messages import Request
from gateway.scheduling.static_batch import MEMORY_LEVEL, PlannedBatch, StaticLimits, form_static_batch

NOW = 500.0
TIME = StepSumTime()

quantiles = st.lists(st.floats(1, 2000), min_size=6, max_size=6).map(lambda tokens: LengthQuantiles.of(tuple(tokens)))
one = st.tuples(st.integers(1, 1024), quantiles, st.floats(0, NOW), st.integers(1, 4))
queues = st.lists(one, min_size=1, max_size=30).map(
    lambda drawn: [
        Request(str(i), "m", prompt, length, arrival_s, 1e9, sequences)
        for i, (prompt, length, arrival_s, sequences) in enumerate(drawn)
    ]
)
limits = st.builds(StaticLimits, st.none() | st.integers(1, 60_000), st.none() | st.integers(1, 40))


@given(queues, limits)
def test_batch_is_within_its_budget_or_the_head_alone(queue, limits):
    batch = form_static_batch(queue[0], queue[1:], limits, NOW, TIME)
    rows = sum(member.sequences for member in batch)
    padded = max(m.prompt_tokens for m in batch) + max(round(m.length.quantile(MEMORY_LEVEL)) for m in batch)
    if len(batch) > 1:
        assert limits.max_batch_size is None or rows <= limits.max_batch_size
        assert limits.kv_capacity_tokens is None or rows * padded <= limits.kv_capacity_tokens


@given(queues, limits)
def test_head_is_first_and_no_request_is_in_twice(queue, limits):
    batch = form_static_batch(queue[0], queue[1:], limits, NOW, TIME)
    ids = [member.id for member in batch]
    assert ids[0] == queue[0].id
    assert len(set(ids)) == len(ids)
    assert set(ids) <= {request.id for request in queue}


@given(queues, limits)
def test_batch_is_never_worth_less_than_its_head_alone(queue, limits):
    batch = form_static_batch(queue[0], queue[1:], limits, NOW, TIME)
    alone = plan = PlannedBatch.of(queue[0], NOW)
    for member in batch[1:]:
        plan = plan.joined_by(PlannedBatch.of(member, NOW))
    assert plan.waited_s / plan.seconds(TIME) >= alone.waited_s / alone.seconds(TIME) * (1 - 1e-9)


@given(queues, limits, st.floats(0.01, 100.0))
def test_time_model_that_is_off_by_a_factor_forms_the_same_batch(queue, limits, factor):
    def scaled(size, prompt_tokens, output_tokens):
        return factor * TIME(size, prompt_tokens, output_tokens)

    batch = form_static_batch(queue[0], queue[1:], limits, NOW, TIME)
    assert form_static_batch(queue[0], queue[1:], limits, NOW, scaled) == batch
