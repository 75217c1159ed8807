from bench.reality.anchor import StreamLog, kv_read, samples_of


def log(prompt_tokens, *events):
    made = StreamLog(prompt_tokens)
    for time_s, count in events:
        made.add(time_s, count)
    return made


def steady(prompt_tokens, *, first_s, step_s, tokens):
    return log(prompt_tokens, *((first_s + step_s * n, n + 1) for n in range(tokens)))


def test_an_anchor_alone_is_one_sequence_a_step():
    (first, *_) = samples_of(steady(10, first_s=0.0, step_s=0.5, tokens=9), [], steps=4)
    assert (first.steps, first.running, first.prefill_tokens) == (4, 4, 0)
    assert first.seconds == 2.0
    assert first.kv_tokens == 11 + 12 + 13 + 14  # tokens 2 to 5 read the prompt and what is before them


def test_others_share_its_steps():
    anchor = steady(10, first_s=0.0, step_s=0.5, tokens=5)
    other = steady(100, first_s=0.1, step_s=0.5, tokens=5)  # its prompt was computed before the segment's end
    (sample,) = samples_of(anchor, [other], steps=4)
    assert sample.steps == 4
    assert sample.running == 4 + 4
    assert sample.kv_tokens == (11 + 12 + 13 + 14) + (100 + 101 + 102 + 103)
    assert sample.prefill_tokens == 100


def test_a_prompt_counts_in_the_segment_of_its_first_token():
    anchor = steady(1, first_s=0.0, step_s=1.0, tokens=9)
    other = steady(50, first_s=5.1, step_s=1.0, tokens=3)
    assert [sample.prefill_tokens for sample in samples_of(anchor, [other], steps=4)] == [0, 50]


def test_tokens_that_come_together_are_as_many_steps():
    (sample,) = samples_of(log(1, (0.0, 1), (1.0, 7)), [], steps=4)
    assert (sample.steps, sample.running) == (6, 6)


def test_an_unfinished_segment_is_left_out():
    assert list(samples_of(steady(1, first_s=0.0, step_s=1.0, tokens=4), [], steps=4)) == []


def test_kv_read_adds_up_over_parts():
    assert kv_read(7, 0, 12) == kv_read(7, 0, 5) + kv_read(7, 5, 12)
    assert kv_read(7, 0, 1) == 7
