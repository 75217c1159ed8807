from hypothesis import given
from hypothesis import strategies as st

from bench.paper.wma import BatchShape, waste_of_padding, waste_of_waiting

members = st.lists(st.tuples(st.integers(1, 1024), st.integers(1, 1024)), min_size=1, max_size=12)


def shape_of(members):
    shape = BatchShape.of(*members[0])
    for prompt_tokens, output_tokens in members[1:]:
        shape = shape.joined_by(prompt_tokens, output_tokens)
    return shape


@given(st.integers(0, 300), st.integers(0, 300), st.integers(0, 500))
def test_waste_of_waiting_is_the_sum_over_the_steps_after_an_answers_end(output_tokens, more, longest_prompt):
    longest_output = output_tokens + more
    expected = sum(step + longest_prompt for step in range(output_tokens, longest_output))
    assert waste_of_waiting(output_tokens, longest_prompt, longest_output) == expected


@given(members)
def test_the_waste_of_a_batch_is_the_largest_waste_of_a_member(members):
    longest_prompt, longest_output = (max(column) for column in zip(*members, strict=True))
    wastes = [
        waste_of_padding(prompt, output, longest_prompt) + waste_of_waiting(output, longest_prompt, longest_output)
        for prompt, output in members
    ]
    assert shape_of(members).wma == max(wastes)


@given(members)
def test_memory_is_the_padded_size_at_the_end_of_the_batch(members):
    longest_prompt, longest_output = (max(column) for column in zip(*members, strict=True))
    assert shape_of(members).kv_tokens == len(members) * (longest_prompt + longest_output)


@given(members, st.permutations(range(12)))
def test_the_order_of_joining_does_not_matter(members, order):
    shuffled = [members[i] for i in order if i < len(members)]
    assert shape_of(shuffled) == shape_of(members)


def test_equal_requests_waste_nothing():
    assert shape_of([(100, 50)] * 5).wma == 0
