"""Division of a batch's answer among its requests."""

import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.batches import apportion, split_answer

counts = st.integers(0, 10**6)
choices = st.lists(st.tuples(st.text(max_size=20), st.sampled_from(["stop", "length"])), min_size=1, max_size=12)


@given(counts, st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_parts_sum_to_the_whole_and_none_is_negative(total, weights):
    parts = apportion(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 0


@given(counts, st.lists(st.integers(1, 1000), min_size=1, max_size=50))
def test_part_is_off_by_less_than_one(total, weights):
    for part, weight in zip(apportion(total, weights), weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1 + 1e-6


@given(choices, counts, counts, st.none() | st.integers(1, 100))
def test_every_text_is_returned_and_the_tokens_sum_to_the_engines(texts, prompt, completion, max_tokens):
    listed = [{"index": i, "text": text, "finish_reason": why} for i, (text, why) in enumerate(texts)]
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    body = json.dumps({"choices": listed, "usage": usage}).encode()
    shares = split_answer(body, [1] * len(texts), max_tokens)
    answers = [json.loads(share.whole()) for share in shares]
    assert [answer["choices"][0]["text"] for answer in answers] == [text for text, _ in texts]
    assert sum(answer["usage"]["prompt_tokens"] for answer in answers) == prompt
    assert sum(answer["usage"]["completion_tokens"] for answer in answers) == completion
